"""One stage of the walk: statistics of its sites, choices, and the quantized layers that take their places."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from channelwise.engine.evaluator import SiteEvaluator, loss_dependents, with_searched_clip
from channelwise.engine.hooks import run_until_seen
from channelwise.engine.plan import Plan, SiteRecord
from channelwise.engine.quantize import plain_layer, quantize_linear
from channelwise.engine.sampling import TokenSampler
from channelwise.engine.statistics import StatisticsBuilder
from channelwise.errors import NumericalError
from channelwise.methods.site import ChannelStatistics, Choice, Importance
from channelwise.model.linears import replace_module
from channelwise.model.sites import Site
from channelwise.numerics.transform import ChannelTransform
from channelwise.runtime.linear import QuantizedLinear
from channelwise.runtime.scheme import InputScheme


@dataclass(frozen=True)
class Stage:
    """A part of a model that is quantized as one: a block, or the whole model with what is behind its blocks.

    name: the root's full name, "" for the model. run(sample) runs the root on a calibration sample, of which there
    are `samples`. search: the samples that a search by transformed outputs looks at. importance: by full name of a
    layer, as `fisher.output_importance` gives it.
    """

    root: nn.Module
    name: str
    sites: tuple[Site, ...]
    run: Callable[[int], Any]
    samples: int
    search: Sequence[int]
    sampler: TokenSampler
    importance: Mapping[str, Importance] = field(default_factory=dict)

    def full(self, linear: str) -> str:
        """The full name of one of its layers."""
        return f"{self.name}.{linear}" if self.name else linear

    def runs(self, samples: Sequence[int]) -> list[Callable[[], Any]]:
        """What runs the root on each of the samples."""
        return [partial(self.run, sample) for sample in samples]


Replacements = dict[str, QuantizedLinear]


def quantize_sites(stage: Stage, sites: Sequence[Site], plan: Plan) -> tuple[list[SiteRecord], Replacements]:
    """The records and the quantized layers of some of the stage's sites; nothing is replaced yet.

    Raises NumericalError, naming the layer, for numbers that are not finite.
    """
    statistics = _collect(stage, sites)
    records, layers = [], {}
    for site in sites:
        found = statistics.get(site.name)
        choice = None
        if found is not None:
            _check_finite(found, stage.full(site.name))
            choice = _choose(stage, site, found, plan)
        layers.update(_quantized(stage, site, choice, found, plan))
        records.append(_record(stage, site, found, choice))
    return records, layers


def install(stage: Stage, layers: Replacements) -> None:
    """Puts quantized layers in their places."""
    for name, layer in layers.items():
        replace_module(stage.root, name, layer)


def _collect(stage: Stage, sites: Sequence[Site]) -> dict[str, ChannelStatistics]:
    builders = {site.name: StatisticsBuilder(site.channels) for site in sites}
    for run in stage.runs(range(stage.samples)):
        run_until_seen(run, stage.root, list(builders), lambda site, x: builders[site].update(x))
    return {site: builder.finish() for site, builder in builders.items() if builder.tokens}


def _choose(stage: Stage, site: Site, statistics: ChannelStatistics, plan: Plan) -> Choice:
    site_plan = plan.site_plan(site.kind)
    evaluator = SiteEvaluator(
        block=stage.root,
        site=site,
        statistics=statistics,
        runs=stage.runs(stage.search),
        weight_plan=plan.weights,
        input_plan=site_plan.inputs,
        dependents=loss_dependents(site),
        all_runs=stage.runs(range(stage.samples)),
        sampler=stage.sampler,
        importance_of={linear: stage.importance.get(stage.full(linear)) for linear in site.linears},
    )
    choice = site_plan.method.choose(evaluator)
    return with_searched_clip(choice, evaluator) if site_plan.search_clip else choice


def _quantized(
    stage: Stage, site: Site, choice: Choice | None, statistics: ChannelStatistics | None, plan: Plan
) -> Replacements:
    input_plan = plan.site_plan(site.kind).inputs
    inputs = None if input_plan is None else input_plan.scheme
    if statistics is None and inputs is not None:
        # An expert that no token reached: nothing is known of its range, so it is found at run time.
        inputs = InputScheme(inputs.grid, "token")
    choice = choice or Choice(ChannelTransform())
    layers = {}
    for index, linear in enumerate(site.linears):
        if plan.excludes(stage.full(linear)):
            continue
        module = stage.root.get_submodule(linear)
        if choice.layers is not None:
            layer = choice.layers[index]
        else:
            layer = plain_layer(module, choice.transform, statistics, plan.weights.scheme, inputs, choice.clip)
        layers[linear] = quantize_linear(module, choice.transform, layer)
        if not bool(torch.isfinite(layers[linear].weight_scale).all()):
            raise NumericalError(f"{stage.full(linear)}: its weight has values that are not finite; check the weights")
    return layers


def _check_finite(statistics: ChannelStatistics, name: str) -> None:
    if not bool(torch.isfinite(statistics.minimum + statistics.maximum).all()):
        raise NumericalError(f"{name}: its input has values that are not finite; check the model's weights and dtype")


def _record(stage: Stage, site: Site, statistics: ChannelStatistics | None, choice: Choice | None) -> SiteRecord:
    linears = tuple(stage.full(linear) for linear in site.linears)
    if statistics is None:
        return SiteRecord(
            linears[0], linears, site.kind, site.channels, 0, 0.0, 0.0, 0.0, {"note": "no token reached it"}
        )
    largest = statistics.absolute_maximum
    half = (statistics.maximum - statistics.minimum) / 2
    asymmetry = statistics.center.abs() / half.clamp(min=torch.finfo(torch.float32).tiny)
    layers = choice.layers if choice is not None and choice.layers is not None else ()
    return SiteRecord(
        name=linears[0],
        linears=linears,
        kind=site.kind,
        channels=site.channels,
        tokens=statistics.tokens,
        largest=float(largest.amax()),
        median=float(largest.median()),
        asymmetry=float(asymmetry[half > 0].amax()) if bool((half > 0).any()) else 0.0,
        notes=dict(choice.notes) if choice else {},
        layers={name: dict(layer.notes) for name, layer in zip(linears, layers, strict=False)},
    )
