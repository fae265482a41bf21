"""Where a floating-point model has outlier channels, and what could be folded there: what `inspect` shows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from channelwise.engine.hooks import observed_inputs
from channelwise.engine.statistics import StatisticsBuilder
from channelwise.errors import NumericalError
from channelwise.model.batches import Batch
from channelwise.model.blocks import find_blocks
from channelwise.model.calls import capture_calls
from channelwise.model.producers import Fold, prove_folds
from channelwise.model.sites import Site, discover_sites
from channelwise.runtime.widening import in_wide_products

PROBE_SAMPLES, PROBE_TOKENS = 2, 16


@dataclass(frozen=True)
class SiteOutliers:
    """One site of one block.

    name, linears: full module names. largest: the largest |x| of any channel. median: the median channel's largest |x|.
    ratio: the former over the latter. asymmetry: the largest |centre| of a channel over the largest half range; 0 is
    symmetric, 1 one-sided, more is offset. folds_into: the producer that a scale was proven to fold into, with shift
    too if folds_shift; None where not, for the reason given. tokens: how many were seen; 0 for an expert that none
    reached, all figures 0.
    """

    block: int
    name: str
    linears: tuple[str, ...]
    kind: str
    channels: int
    tokens: int
    largest: float
    median: float
    ratio: float
    asymmetry: float
    folds_into: str | None
    folds_shift: bool
    reason: str


@dataclass(frozen=True)
class RangeFigures:
    """What a site's channel ranges come to; the same figures as in `SiteOutliers`."""

    largest: float
    median: float
    ratio: float
    asymmetry: float


@in_wide_products
@torch.no_grad()
def find_outliers(
    model: nn.Module, batches: Sequence[Batch], progress: Callable[[str, int, int], None] | None = None
) -> tuple[SiteOutliers, ...]:
    """Every site of the model, in order, with the channel statistics of its input over all batches.

    Raises InputError for a model without blocks of linear layers, NumericalError where an input is not finite.
    """
    report = progress or (lambda label, done, total: None)
    found = _sites_and_folds(model, batches[0], report)
    builders = {f"{prefix}.{site.name}": StatisticsBuilder(site.channels) for _, prefix, site, _ in found}
    with observed_inputs(model, list(builders), lambda name, x: builders[name].update(x)):
        for index, batch in enumerate(batches):
            report("reading the calibration data", index, len(batches))
            model(**batch)
    return tuple(
        site_outliers(index, prefix, site, fold, builders[f"{prefix}.{site.name}"])
        for index, prefix, site, fold in found
    )


def few_tokens(batch: Batch) -> Batch:
    """A small batch is enough for finding sites; images cannot be cut."""
    few = {name: value[:PROBE_SAMPLES] for name, value in batch.items()}
    return {name: value[:, :PROBE_TOKENS] if value.ndim == 2 else value for name, value in few.items()}


def site_outliers(block: int, prefix: str, site: Site, fold: Fold, builder: StatisticsBuilder) -> SiteOutliers:
    """A site with its figures. prefix: the block's name. Raises NumericalError where an input is not finite."""
    names: dict[str, Any] = {
        "block": block,
        "name": f"{prefix}.{site.name}",
        "linears": tuple(f"{prefix}.{linear}" for linear in site.linears),
        "kind": site.kind,
        "channels": site.channels,
        "tokens": builder.tokens,
        "folds_into": f"{prefix}.{fold.producer}" if fold.scale else None,
        "folds_shift": fold.scale and fold.shift,
        "reason": fold.reason,
    }
    if builder.tokens == 0:
        return SiteOutliers(**names, largest=0.0, median=0.0, ratio=0.0, asymmetry=0.0)
    statistics = builder.finish()
    if not bool(torch.isfinite(statistics.absolute_maximum).all()):
        where = names["name"]
        raise NumericalError(f"{where}: its input has values that are not finite; check the model's weights and dtype")
    figures = range_figures(statistics.minimum, statistics.maximum)
    return SiteOutliers(
        **names, largest=figures.largest, median=figures.median, ratio=figures.ratio, asymmetry=figures.asymmetry
    )


def range_figures(minimum: torch.Tensor, maximum: torch.Tensor) -> RangeFigures:
    """The figures of finite channel ranges, float32 [channels] each."""
    largest = torch.maximum(minimum.abs(), maximum.abs())
    tiny = torch.finfo(torch.float32).tiny
    half_range = ((maximum - minimum) / 2).amax().clamp(min=tiny)
    center = ((maximum + minimum) / 2).abs().amax()
    return RangeFigures(
        largest=float(largest.amax()),
        median=float(largest.median()),
        ratio=float(largest.amax() / largest.median().clamp(min=tiny)),
        asymmetry=float(center / half_range),
    )


def _sites_and_folds(
    model: nn.Module, batch: Batch, report: Callable[[str, int, int], None]
) -> list[tuple[int, str, Site, Fold]]:
    """(block index, block name, site, fold) of all sites, found with a few tokens that run through the blocks."""
    blocks = find_blocks(model)
    calls = capture_calls(model, blocks, [few_tokens(batch)])[0]
    hidden = calls[0].hidden()
    found = []
    for index, (name, block) in enumerate(zip(blocks.names, blocks.modules(model), strict=True)):
        report(f"block {index + 1} of {len(blocks.names)}", index, len(blocks.names))
        call = calls[index].with_hidden(hidden)
        sites = discover_sites(block, call)
        folds = prove_folds(block, sites, call)
        found += [(index, name, site, fold) for site, fold in zip(sites, folds, strict=True)]
        hidden = call.run(block)
    return found
