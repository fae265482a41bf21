"""The page of `inspect`: a table of sites, and two lines about what is hard and what to try."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from channelwise.report.format import MISSING, number
from channelwise.report.tables import NARROW, plain_table

OUTLIER_RATIO, STRONG_RATIO = 6.0, 20.0
"""Largest over median channel from which a site is called hard, and very hard, for static per-tensor inputs."""

FOLDS_WIDTH = 96
"""Columns of the terminal from which the folds are shown too."""

OFFSET = 1.5
"""Asymmetry from which channels are called offset: beyond 1, zero lies outside the largest channel's range."""


def sites_table(sites: Sequence[Any], width: int) -> Table:
    """A row for each site, objects as `evaluation.outliers.SiteOutliers`; narrow terminals lose folds, then sizes."""
    wide = width >= NARROW
    table = plain_table(width)
    table.add_column("block", justify="right", no_wrap=True)
    table.add_column("layers", overflow="fold", min_width=12)
    if wide:
        table.add_column("site", no_wrap=True)
        table.add_column("channels", justify="right", no_wrap=True)
    table.add_column("largest |x|" if wide else "largest", justify="right", no_wrap=True)
    table.add_column("× median", justify="right", no_wrap=True)
    table.add_column("asymmetry" if wide else "asym.", justify="right", no_wrap=True)
    if width >= FOLDS_WIDTH:
        table.add_column("folds into", overflow="ellipsis", no_wrap=True)
    last = None
    for site in sites:
        block = "" if site.block == last else str(site.block)
        table.add_row(block, *_cells(site, wide)[: len(table.columns) - 1])
        last = site.block
    return table


@dataclass(frozen=True)
class Outlook:
    """What matters of a model's sites: the largest ratios of stream and inner sites, the stream sites' asymmetry."""

    stream: float
    inner: float
    offset: float

    @property
    def is_hard(self) -> bool:
        """Whether any site has a channel that stands out."""
        return max(self.stream, self.inner) >= OUTLIER_RATIO


def outlook(sites: Iterable[Any]) -> Outlook:
    """Of objects as `evaluation.outliers.SiteOutliers`; those that no token reached say nothing."""
    seen = [site for site in sites if site.tokens]
    return Outlook(
        stream=max((site.ratio for site in seen if site.kind == "stream"), default=0.0),
        inner=max((site.ratio for site in seen if site.kind == "inner"), default=0.0),
        offset=max((site.asymmetry for site in seen if site.kind == "stream"), default=0.0),
    )


def advice(sites: Sequence[Any]) -> Table:
    """Two lines: what is hard here, and which recipes to try."""
    found = outlook(sites)
    lines = Table.grid(padding=(0, 2))
    lines.add_row(Text("hard", style="bold"), difficulty(found))
    lines.add_row(Text("try", style="bold"), remedy(found))
    return lines


def difficulty(found: Outlook) -> str:
    """What is hard, a clause without a capital."""
    if not found.is_hard:
        return "no channel stands out: no site has one beyond 6 times its median channel."
    where = []
    if found.stream >= OUTLIER_RATIO:
        where.append(f"{number(found.stream, 0)} times the median channel where blocks read the residual stream")
    if found.inner >= OUTLIER_RATIO:
        where.append(f"{number(found.inner, 0)} times at inner sites (out/o, fc2/down)")
    shifted = "; they are offset from zero, so a shift helps" if found.offset >= OFFSET else ""
    return f"outlier channels, up to {' and '.join(where)}{shifted}."


def remedy(found: Outlook) -> str:
    """Which recipes to try, a clause without a capital."""
    first, *others = suggested_recipes(found)
    if not found.is_hard:
        return f"{first} may do; {others[0]} for less memory."
    if found.inner >= STRONG_RATIO:
        return f"{first} or {others[0]}, which treat every site; then their w6a6 forms."
    return f"{first} or {others[0]}, then their w6a6 forms; {others[1]} for the fastest form."


def suggested_recipes(found: Outlook) -> tuple[str, ...]:
    """Recipes to begin with, the first choice first."""
    if not found.is_hard:
        return ("rtn-w8a8", "outliertune-w6a6")
    if found.inner >= STRONG_RATIO:
        return ("outliertune-static-w8a8", "os-plus-all-w8a8")
    return ("outliertune-w8a8", "os-plus-w8a8", "outliertune-static-w8a8")


def _cells(site: Any, wide: bool) -> list[Text | str]:
    layers = layer_names(site.linears)
    figures: list[Text | str] = [number(site.largest, 2), _ratio(site), number(site.asymmetry, 2)]
    if not site.tokens:
        figures = [MISSING, MISSING, MISSING]
    if not wide:
        return [layers, *figures]
    return [layers, site.kind, str(site.channels), *figures, _fold(site)]


def _ratio(site: Any) -> Text:
    style = "red" if site.ratio >= STRONG_RATIO else "yellow" if site.ratio >= OUTLIER_RATIO else "green"
    return Text(number(site.ratio, 1), style=style)


def _fold(site: Any) -> Text:
    """The producer's last name, and whether it takes the scale only; a dash where there is none."""
    if site.folds_into is None:
        return Text(MISSING, style="dim")
    return Text(site.folds_into.rpartition(".")[2] + ("" if site.folds_shift else " (scale)"))


def layer_names(linears: Sequence[str]) -> str:
    """Without what they share: `q,k,v_proj`, `query key value`, `attention.dense`."""
    parts = [name.split(".") for name in linears]
    shared = 0
    while all(len(part) > shared + 1 and part[shared] == parts[0][shared] for part in parts):
        shared += 1
    names = [".".join(part[shared:]) for part in parts]
    stem, _, ending = names[0].rpartition("_")
    if len(names) > 1 and stem and all(name.endswith(f"_{ending}") for name in names):
        return ",".join(name.removesuffix(f"_{ending}") for name in names) + f"_{ending}"
    return " ".join(names)
