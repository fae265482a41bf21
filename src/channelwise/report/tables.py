"""Results as rich tables that keep their shape from 60 columns up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from channelwise.report.format import MISSING, duration, megabytes, number

Results = Mapping[str, Any]
NARROW = 80
"""Below so many columns a table leaves out what can be missed best."""

GOOD, FAIR = 1.01, 1.10
"""Perplexity ratios up to which a recipe is shown as good, as fair; beyond, as bad."""


@dataclass(frozen=True)
class _Column:
    """A heading, and how an entry of a model's results is shown; wide ones are left out of narrow terminals."""

    heading: str
    key: str
    show: Any
    wide: bool = False


_LANGUAGE = (
    _Column("perplexity", "perplexity", lambda value: number(value, 3)),
    _Column("× FP", "perplexity_ratio", lambda value: _ratio(value)),
)
_EMBEDDINGS = (
    _Column("cosine", "cosine_mean", lambda value: number(value, 4)),
    _Column("lowest", "cosine_min", lambda value: number(value, 4), wide=True),
    _Column("probe", "probe_accuracy", lambda value: percent(value)),
)
_SIZE = (
    _Column("size", "model_bytes", lambda value: MISSING if value is None else megabytes(value)),
    _Column("bits", "bits_per_weight", lambda value: number(value, 2), wide=True),
)
_TIME = _Column("quantized in", "quantize_seconds", lambda value: MISSING if value is None else duration(value))
_SHORT_TIME = _Column("time", "quantize_seconds", _TIME.show)


def comparison_table(comparison: Mapping[str, Any], width: int) -> Table:
    """What `compare` returns: the floating-point model first, then a row for each recipe."""
    floating: Results = comparison["fp"]
    columns = _columns(floating, width)
    table = plain_table(width)
    table.add_column("recipe", no_wrap=True)
    for column in columns:
        table.add_column(column.heading, justify="right", no_wrap=True)
    table.add_row("floating point", *_cells(columns, floating), style="bold", end_section=True)
    for name, results in comparison["recipes"].items():
        table.add_row(name, *_cells(columns, results))
    return table


def evaluation_table(results: Results) -> Table:
    """What `evaluate` returns, a line for each figure."""
    table = Table.grid(padding=(0, 3))
    for label, text in _evaluation_lines(results):
        table.add_row(Text(label, style="dim"), text)
    return table


def recipes_table(recipes: Sequence[Any], width: int) -> Table:
    """The catalogue: objects with name, summary, paper, weights and stream, as `recipe.Recipe`."""
    table = plain_table(width)
    table.add_column("recipe", no_wrap=True, style="bold")
    table.add_column("W/A", justify="right", no_wrap=True)
    table.add_column("what it does")
    if width >= NARROW:
        table.add_column("paper", style="dim", no_wrap=True)
    for recipe in recipes:
        inputs = recipe.stream.inputs.bits if recipe.stream.inputs else 16
        cells = [recipe.name, f"{recipe.weights.bits}/{inputs}", recipe.summary, recipe.paper or MISSING]
        table.add_row(*cells[: len(table.columns)])
    return table


def percent(share: float | None) -> str:
    """`81.4 %`."""
    return MISSING if share is None else f"{100 * share:.1f} %"


def plain_table(width: int) -> Table:
    """Headings over a thin rule; narrow terminals get less air."""
    return Table(box=_rule(), padding=(0, 1, 0, 0) if width < NARROW else (0, 2, 0, 0), show_edge=False, pad_edge=False)


def _rule() -> Any:
    from rich import box

    return box.SIMPLE_HEAD


def _columns(floating: Results, width: int) -> list[_Column]:
    """Those that the results can fill and the width can hold."""
    columns = list(_LANGUAGE) if floating.get("perplexity") is not None else []
    columns += _EMBEDDINGS if "cosine_mean" in floating else ()
    columns += [*_SIZE, _TIME if width >= NARROW else _SHORT_TIME]
    return [column for column in columns if width >= NARROW or not column.wide]


def _cells(columns: Sequence[_Column], results: Results) -> list[Text | str]:
    return [column.show(results.get(column.key)) for column in columns]


def _ratio(value: float | None) -> Text:
    """The perplexity over the floating-point one's, coloured by how much is lost."""
    if value is None:
        return Text(MISSING)
    style = "green" if value <= GOOD else "yellow" if value <= FAIR else "red"
    return Text(number(value, 4 if value < 10 else 1), style=style)


def _evaluation_lines(results: Results) -> list[tuple[str, str]]:
    lines = []
    if results.get("perplexity") is not None:
        windows = f"{results['tokens']:,} tokens, windows of {results['length']}"
        lines.append(("perplexity", f"{number(results['perplexity'], 4)}   ({windows})"))
    if "cosine_mean" in results:
        lowest = number(results["cosine_min"], 4)
        lines.append(("cosine to FP", f"{number(results['cosine_mean'], 4)}   (lowest {lowest})"))
    if results.get("probe_accuracy") is not None:
        original = percent(results["probe_accuracy_fp"])
        lines.append(("linear probe", f"{percent(results['probe_accuracy'])}   (FP {original})"))
    lines.append(("size", megabytes(results["model_bytes"])))
    lines.append(("bits per weight", number(results["bits_per_weight"], 2)))
    lines.append(("time", duration(results["seconds"])))
    return lines
