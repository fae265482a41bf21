"""A model's profile: every channel of every site, before and after a recipe's transform, and what rounding would cost.

Everything is seen on the floating-point model: no site sees another's rounding. The model itself is not changed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from channelwise.engine.fit import check_plan
from channelwise.engine.hooks import observed_inputs
from channelwise.engine.plan import Plan, SiteRecord
from channelwise.engine.sampling import TokenSampler
from channelwise.engine.stage import Stage, quantize_sites
from channelwise.engine.statistics import StatisticsBuilder
from channelwise.evaluation.layer_errors import TOKENS, Forms, relative_errors
from channelwise.evaluation.outliers import RangeFigures, SiteOutliers, few_tokens, range_figures, site_outliers
from channelwise.evaluation.profile_schemes import plain_layers
from channelwise.model.batches import Batch
from channelwise.model.blocks import find_blocks
from channelwise.model.calls import capture_calls
from channelwise.model.linears import weight_matrix
from channelwise.model.producers import prove_folds
from channelwise.model.sites import Site, discover_sites
from channelwise.numerics.floats import power_of_two
from channelwise.runtime.linear import QuantizedLinear
from channelwise.runtime.widening import in_wide_products


@dataclass(frozen=True)
class TransformedInput:
    """A site's input as the recipe's quantizer sees it: shifted, scaled, times the pre-shifted powers of two.

    minima, maxima: per channel, in the transform's own unit. shift, scale: whether there is one; notes: as the walk
    keeps them.
    """

    minima: tuple[float, ...]
    maxima: tuple[float, ...]
    figures: RangeFigures
    shift: bool
    scale: bool
    notes: dict[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True)
class LayerErrors:
    """One linear layer: full name, [out_features, in_features], and relative errors by scheme (`relative_errors`)."""

    name: str
    shape: tuple[int, int]
    errors: dict[str, float | None]


@dataclass(frozen=True)
class SiteProfile:
    """One site: its figures, its channels' ranges (empty without tokens), those after the transform, its layers."""

    outliers: SiteOutliers
    minima: tuple[float, ...]
    maxima: tuple[float, ...]
    transformed: TransformedInput | None
    layers: tuple[LayerErrors, ...]


@dataclass(frozen=True)
class NamedPlan:
    """A recipe's plan, under the name that pages show."""

    name: str
    plan: Plan


@in_wide_products
@torch.no_grad()
def profile_model(
    model: nn.Module,
    batches: Sequence[Batch],
    recipe: NamedPlan | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[SiteProfile, ...]:
    """Every site of a floating-point model's blocks, in order.

    recipe: whose transform and error are shown beside the plain schemes'. progress(label, done, total) is told of every
    block. Memory beside the model: the hidden states of the calibration set at one block boundary, one block's layers
    in each scheme. Raises InputError for a model without blocks or a plan that does not fit it, NumericalError, naming
    the layer, for numbers that are not finite.
    """
    blocks = find_blocks(model)
    if recipe is not None:
        check_plan(model, blocks, recipe.plan)
    report = progress or (lambda label, done, total: None)
    report("reading the calibration data", 0, len(blocks.names))
    calls = capture_calls(model, blocks, [few_tokens(batches[0]), *batches])
    hidden = [sample[0].hidden() for sample in calls]
    found: list[SiteProfile] = []
    for index, (name, block) in enumerate(zip(blocks.names, blocks.modules(model), strict=True)):
        report(f"block {index + 1} of {len(blocks.names)}", index, len(blocks.names))
        block_calls = [sample[index].with_hidden(x) for sample, x in zip(calls, hidden, strict=True)]
        looked = _Block(index, name, block, block_calls[0], [partial(call.run, block) for call in block_calls])
        profiles, hidden = looked.profiles(recipe)
        found += profiles
    report("done", len(blocks.names), len(blocks.names))
    return tuple(found)


@dataclass(frozen=True)
class _Block:
    """One block; runs: by sample, what runs it and gives the next hidden state; the first is that of a few tokens."""

    index: int
    name: str
    block: nn.Module
    probe: Any
    runs: list[Callable[[], torch.Tensor]]

    def profiles(self, recipe: NamedPlan | None) -> tuple[list[SiteProfile], list[torch.Tensor]]:
        """The block's sites, and the hidden states behind it."""
        sites = discover_sites(self.block, self.probe)
        folds = prove_folds(self.block, sites, self.probe)
        builders, hidden = self._gathered(sites)
        outliers = [
            site_outliers(self.index, self.name, site, fold, builders[site.name])
            for site, fold in zip(sites, folds, strict=True)
        ]
        statistics = {name: builder.finish() for name, builder in builders.items() if builder.tokens}
        schemes: dict[str, dict[str, QuantizedLinear]] = plain_layers(self.block, sites, statistics)
        records: dict[str, SiteRecord] = {}
        if recipe is not None:
            records, schemes[recipe.name] = self._by_recipe(sites, recipe.plan, builders)
        errors = relative_errors(self.block, self._few_runs(builders), schemes)
        profiles = []
        for site, found in zip(sites, outliers, strict=True):
            ranges = statistics.get(site.name)
            transformed = None
            if recipe is not None and ranges is not None:
                transformed = self._transformed(
                    site, ranges.minimum, ranges.maximum, schemes[recipe.name], records.get(found.name)
                )
            profiles.append(
                SiteProfile(
                    outliers=found,
                    minima=() if ranges is None else tuple(ranges.minimum.tolist()),
                    maxima=() if ranges is None else tuple(ranges.maximum.tolist()),
                    transformed=transformed,
                    layers=self._layers(site, errors, schemes),
                )
            )
        return profiles, hidden

    def _gathered(self, sites: Sequence[Site]) -> tuple[dict[str, StatisticsBuilder], list[torch.Tensor]]:
        """Statistics of every site by its name, from one pass that also gives the next hidden states."""
        builders = {site.name: StatisticsBuilder(site.channels) for site in sites}
        hidden = [self.runs[0]()]
        with observed_inputs(self.block, list(builders), lambda name, x: builders[name].update(x)):
            hidden += [run() for run in self.runs[1:]]
        return builders, hidden

    def _by_recipe(
        self, sites: Sequence[Site], plan: Plan, builders: dict[str, StatisticsBuilder]
    ) -> tuple[dict[str, SiteRecord], dict[str, QuantizedLinear]]:
        """The recipe's records by site, and its quantized layers; nothing is replaced."""
        runs = self.runs[1:]
        tokens = max(builder.tokens for builder in builders.values())
        searched = max(1, min(len(runs), round(len(runs) * plan.search_tokens / max(tokens, 1))))
        stage = Stage(
            root=self.block,
            name=self.name,
            sites=tuple(s for s in sites if not all(plan.excludes(f"{self.name}.{linear}") for linear in s.linears)),
            run=lambda sample: runs[sample](),
            samples=range(len(runs)),
            search=range(searched),
            sampler=TokenSampler(min(1.0, plan.search_tokens / max(tokens, 1))),
        )
        records, layers = quantize_sites(stage, stage.sites, plan)
        return {record.name: record for record in records}, layers

    def _few_runs(self, builders: dict[str, StatisticsBuilder]) -> list[Callable[[], torch.Tensor]]:
        """Runs of about TOKENS tokens."""
        runs = self.runs[1:]
        tokens = max(builder.tokens for builder in builders.values())
        return runs[: max(1, round(len(runs) * TOKENS / max(tokens, 1)))]

    def _transformed(
        self,
        site: Site,
        minimum: torch.Tensor,
        maximum: torch.Tensor,
        layers: dict[str, QuantizedLinear],
        record: SiteRecord | None,
    ) -> TransformedInput | None:
        """What the first quantized layer of the site does to its input before rounding; None if all are excluded."""
        layer = next((layers[linear] for linear in site.linears if linear in layers), None)
        if layer is None:
            return None
        low, high = (layer.transform.apply(side.to(layer.weight_scale.device)) for side in (minimum, maximum))
        if layer.input_exponent is not None:
            power = power_of_two(layer.input_exponent.long())
            low, high = low * power, high * power
        return TransformedInput(
            minima=tuple(low.tolist()),
            maxima=tuple(high.tolist()),
            figures=range_figures(low.float().cpu(), high.float().cpu()),
            shift=layer.input_shift is not None,
            scale=layer.input_scale is not None or layer.input_exponent is not None,
            notes={} if record is None else dict(record.notes),
        )

    def _layers(self, site: Site, errors: dict[str, dict[str, float]], schemes: Forms) -> tuple[LayerErrors, ...]:
        found = []
        for linear in site.linears:
            rows, columns = weight_matrix(self.block.get_submodule(linear)).shape
            known = errors.get(linear, {})
            of_linear = {scheme: known.get(scheme) for scheme in schemes}
            found.append(LayerErrors(f"{self.name}.{linear}", (rows, columns), of_linear))
        return tuple(found)
