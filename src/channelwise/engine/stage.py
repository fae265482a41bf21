"""One stage of the walk: statistics of its sites, choices, and the quantized layers that take their places."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from channelwise.engine.evaluator import SiteEvaluator, loss_dependents, with_searched_clip
from channelwise.engine.experts import has_too_few, quantize_with_siblings, recorded_statistics, shared_statistics
from channelwise.engine.hooks import run_until_seen
from channelwise.engine.memory import give_back_free
from channelwise.engine.phases import Phases
from channelwise.engine.plan import Plan, SiteRecord
from channelwise.engine.quantize import plain_input, plain_layer, quantize_linear
from channelwise.engine.rounding import SiteRounding
from channelwise.engine.sampling import TokenSampler
from channelwise.engine.statistics import StatisticsBuilder, joined_hessian, joined_statistics
from channelwise.engine.world import ALONE, World
from channelwise.errors import NumericalError
from channelwise.methods.hessian import Hessian, HessianBuilder
from channelwise.methods.site import ChannelStatistics, Choice, Importance, InputQuantizer, LayerChoice
from channelwise.model.linears import replace_module, weight_matrix
from channelwise.model.sites import Site
from channelwise.numerics.transform import ChannelTransform
from channelwise.runtime.linear import QuantizedLinear
from channelwise.runtime.scheme import InputScheme

HESSIAN_BYTES = 2**29
"""Of the Hessians that are gathered at once, unless one alone has more."""

FEW_TOKENS = "fewer calibration tokens than channels, so GPTQ rests on its damping; give more samples"


@dataclass(frozen=True)
class Stage:
    """A part of a model that is quantized as one: a block, or the whole model with what is behind its blocks.

    name: the root's full name, "" for the model. run(sample) runs the root on one of this rank's calibration samples.
    search: those of them that a search by transformed outputs looks at. importance: by full name of a layer, as
    `fisher.output_importance` gives it. likes: of experts' sites, as `experts.like_sites` gives them. world: the
    processes that share the samples; all take the same decisions.
    streamed: whether the weights come from a stream, which keeps the modules.
    """

    root: nn.Module
    name: str
    sites: tuple[Site, ...]
    run: Callable[[int], Any]
    samples: Sequence[int]
    search: Sequence[int]
    sampler: TokenSampler
    importance: Mapping[str, Importance] = field(default_factory=dict)
    likes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    world: World = ALONE
    streamed: bool = False
    phases: Phases = field(default_factory=Phases)

    def full(self, linear: str) -> str:
        """The full name of one of its layers."""
        return f"{self.name}.{linear}" if self.name else linear

    def runs(self, samples: Sequence[int]) -> list[Callable[[], Any]]:
        """What runs the root on each of the samples."""
        return [partial(self.run, sample) for sample in samples]

    def keep_rows(self) -> None:
        """Layers that are done hold what a checkpoint does, and nothing that they prepared for their products."""
        for module in self.root.modules():
            if isinstance(module, QuantizedLinear):
                module.keep_rows()


Replacements = dict[str, QuantizedLinear]


def quantize_sites(stage: Stage, sites: Sequence[Site], plan: Plan) -> tuple[list[SiteRecord], Replacements]:
    """The records and the quantized layers of some of the stage's sites; nothing is replaced yet.

    Raises NumericalError, naming the layer, for numbers that are not finite and Hessians that cannot be inverted.
    """
    records: list[SiteRecord] = []
    replacements: Replacements = {}
    statistics: dict[str, ChannelStatistics] = {}
    for number, part in enumerate(_parts(sites, plan)):
        give_back_free(max((_largest_weight(stage, site) for site in sites), default=0))
        with stage.phases.of("statistics"):
            # Statistics are small, and experts need their siblings': those of all sites come with the first pass.
            found, hessians = _collect(stage, sites if number == 0 else (), part if plan.weights.needs_hessian else ())
            statistics |= found
        for site in part:
            record, layers = _quantized_site(stage, site, statistics, hessians.pop(site.name, None), plan)
            records.append(record)
            replacements.update(layers)
            give_back_free(_largest_weight(stage, site))
    return records, replacements


def _quantized_site(
    stage: Stage, site: Site, statistics: Mapping[str, ChannelStatistics], hessian: Hessian | None, plan: Plan
) -> tuple[SiteRecord, Replacements]:
    """The record and the quantized layers of one site. statistics: by name, of all sites that a token reached."""
    seen = statistics.get(site.name)
    tokens = 0 if seen is None else seen.tokens
    if has_too_few(site, tokens, stage.likes):
        shared = shared_statistics(statistics[like] for like in stage.likes[site.name] if like in statistics)
        if shared is not None:
            _check_finite(shared, stage.full(site.name))
        modules = _included(stage, site, plan)
        choice, layers = quantize_with_siblings(site, modules, tokens, shared, plan.site_plan(site.kind), plan.weights)
        recorded = recorded_statistics(site, tokens, shared)
    elif seen is None:
        choice, layers = Choice(ChannelTransform(), {"note": "no token reached it"}), _unseen(stage, site, plan)
        recorded = recorded_statistics(site, 0, None)
    else:
        _check_finite(seen, stage.full(site.name))
        choice, layers = _chosen(stage, site, seen, hessian, plan)
        recorded = seen
    with stage.phases.of("round"):
        replacements = _quantized(stage, choice.transform, layers)
    return _record(stage, site, recorded, choice, layers), replacements


def _largest_weight(stage: Stage, site: Site) -> int:
    """The numbers of the largest of the site's weights."""
    return max(weight_matrix(stage.root.get_submodule(linear)).numel() for linear in site.linears)


def _included(stage: Stage, site: Site, plan: Plan) -> dict[str, nn.Module]:
    """The site's layers that the plan does not exclude."""
    kept = (linear for linear in site.linears if not plan.excludes(stage.full(linear)))
    return {linear: stage.root.get_submodule(linear) for linear in kept}


def _parts(sites: Sequence[Site], plan: Plan) -> list[list[Site]]:
    """The sites in parts whose Hessians are in memory at once: many experts' would be more than their block."""
    parts: list[list[Site]] = [[]]
    size = 0
    for site in sites:
        hessian = 4 * site.channels**2 if plan.weights.needs_hessian else 0
        if parts[-1] and size + hessian > HESSIAN_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(site)
        size += hessian
    return parts


def install(stage: Stage, layers: Replacements) -> None:
    """Puts quantized layers in their places."""
    for name, layer in layers.items():
        replaced = stage.root.get_submodule(name)
        replace_module(stage.root, name, layer)
        if stage.streamed:
            # The stream still knows the module, and its weight would stay in memory until the end of the block.
            replaced._parameters.clear()


def _collect(
    stage: Stage, statistics_of: Sequence[Site], hessians_of: Sequence[Site]
) -> tuple[dict[str, ChannelStatistics], dict[str, Hessian]]:
    """What one pass over all ranks' samples gathers of sites' inputs; nothing of those that no token reached."""
    builders = {site.name: StatisticsBuilder(site.channels, _device(stage, site)) for site in statistics_of}
    hessians = {site.name: HessianBuilder(site.channels, _device(stage, site)) for site in hessians_of}

    def see(site: str, x: torch.Tensor) -> None:
        if site in builders:
            builders[site].update(x)
        if site in hessians:
            hessians[site].update(x)

    for run in stage.runs(stage.samples):
        run_until_seen(run, stage.root, list({**builders, **hessians}), see)
    statistics = {site: joined_statistics(builder, stage.world) for site, builder in builders.items()}
    joined = {site: joined_hessian(hessians.pop(site), stage.world) for site in list(hessians)}
    return (
        {site: builder.finish() for site, builder in statistics.items() if builder.tokens},
        {site: builder.finish() for site, builder in joined.items() if builder.tokens},
    )


def _device(stage: Stage, site: Site) -> torch.device:
    """That of the site's weights, where methods and rounding need what is known of its input."""
    return weight_matrix(stage.root.get_submodule(site.linears[0])).device


def _chosen(
    stage: Stage, site: Site, seen: ChannelStatistics, hessian: Hessian | None, plan: Plan
) -> tuple[Choice, dict[str, LayerChoice]]:
    """The site's choice, and the quantizers of its layers that are not excluded."""
    site_plan = plan.site_plan(site.kind)
    evaluator = SiteEvaluator(
        block=stage.root,
        site=site,
        statistics=seen,
        runs=stage.runs(stage.search),
        weight_plan=plan.weights,
        input_plan=site_plan.inputs,
        dependents=loss_dependents(site),
        all_runs=dict(zip(stage.samples, stage.runs(stage.samples), strict=True)),
        sampler=stage.sampler,
        world=stage.world,
        importance_of={linear: stage.importance.get(stage.full(linear)) for linear in site.linears},
        same_tokens=site.name not in stage.likes or plan.calibrate_on == "original",
    )
    with stage.phases.of("choose"):
        choice = site_plan.method.choose(evaluator)
        if site_plan.search_clip:
            choice = with_searched_clip(choice, evaluator)
    if plan.weights.rounding is not None and seen.tokens < site.channels:
        choice = replace(choice, notes={**choice.notes, "warning": FEW_TOKENS})
    scheme = None if site_plan.inputs is None else site_plan.inputs.scheme
    inputs = plain_input(choice.transform, seen, scheme, choice.clip)
    layers = {}
    rounding = SiteRounding(
        plan.weights,
        choice.transform,
        None if hessian is None else hessian.transform_(choice.transform),
        lambda name, weight: evaluator.weight_loss(choice.transform, name, weight),
        stage.full(site.name),
        stage.world,
    )
    with stage.phases.of("round"):
        for index, linear in enumerate(site.linears):
            if plan.excludes(stage.full(linear)):
                continue
            module = stage.root.get_submodule(linear)
            if choice.layers is not None:
                layer = choice.layers[index]
            else:
                layer = plain_layer(module, choice.transform, plan.weights.scheme, inputs)
            rounded = plan.weights.needs_hessian or stage.world.size > 1
            layers[linear] = rounding.layer(module, linear, layer) if rounded else layer
    return choice, layers


def _unseen(stage: Stage, site: Site, plan: Plan) -> dict[str, LayerChoice]:
    """Quantizers for layers that no token reached: nothing is known of its range, so it is found at run time."""
    inputs = plan.site_plan(site.kind).inputs
    quantizer = None if inputs is None else InputQuantizer(InputScheme(inputs.scheme.grid, "token"))
    return {
        linear: plain_layer(module, ChannelTransform(), plan.weights.scheme, quantizer)
        for linear, module in _included(stage, site, plan).items()
    }


def _quantized(stage: Stage, transform: ChannelTransform, layers: Mapping[str, LayerChoice]) -> Replacements:
    quantized = {}
    for linear, layer in layers.items():
        quantized[linear] = quantize_linear(stage.root.get_submodule(linear), transform, layer)
        if not bool(torch.isfinite(quantized[linear].weight_scale).all()):
            raise NumericalError(f"{stage.full(linear)}: its weight has values that are not finite; check the weights")
    return quantized


def _check_finite(statistics: ChannelStatistics, name: str) -> None:
    if not bool(torch.isfinite(statistics.minimum + statistics.maximum).all()):
        raise NumericalError(f"{name}: its input has values that are not finite; check the model's weights and dtype")


def _record(
    stage: Stage, site: Site, statistics: ChannelStatistics, choice: Choice, layers: Mapping[str, LayerChoice]
) -> SiteRecord:
    linears = tuple(stage.full(linear) for linear in site.linears)
    largest = statistics.absolute_maximum
    half = (statistics.maximum - statistics.minimum) / 2
    asymmetry = statistics.center.abs() / half.clamp(min=torch.finfo(torch.float32).tiny)
    return SiteRecord(
        name=linears[0],
        linears=linears,
        kind=site.kind,
        channels=site.channels,
        tokens=statistics.tokens,
        largest=float(largest.amax()),
        median=float(largest.median()),
        asymmetry=float(asymmetry[half > 0].amax()) if bool((half > 0).any()) else 0.0,
        notes=dict(choice.notes),
        layers={stage.full(linear): dict(layer.notes) for linear, layer in layers.items() if layer.notes},
    )
