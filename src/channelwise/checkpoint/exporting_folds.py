"""Channel transforms moved out of the quantizers, into the modules in front of them: what every exported format needs.

Where that is possible is found and proven by probing (`model/producers.py`), never looked up by architecture.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from channelwise.engine.hooks import observed_inputs
from channelwise.model.blocks import find_blocks
from channelwise.model.calls import capture_calls
from channelwise.model.folding import fold_transform
from channelwise.model.linears import bias_vector, is_linear, set_weight, weight_matrix
from channelwise.model.producers import NO_CHANNELS, Fold, prove_folds
from channelwise.model.sites import Site, discover_sites
from channelwise.numerics.transform import ChannelTransform

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class FoundSite:
    """A site of the whole model; all names are full. dimensions: of its input tensor, 3 for [batch, tokens, channels].

    fold: whether and how a transform can be folded into the site's producer.
    """

    name: str
    linears: tuple[str, ...]
    kind: str
    fold: Fold
    dimensions: int = 3


@dataclass(frozen=True)
class Folding:
    """What is folded where.

    producers: by module, what its output becomes, float64 [output channels]. sites: by site, the part of its transform
    that its producer takes over, in the site's channels. reasons: by site, why its transform, or its shift, stays.
    """

    producers: dict[str, ChannelTransform] = field(default_factory=dict)
    sites: dict[str, ChannelTransform] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


@torch.no_grad()
def find_sites(model: nn.Module, batch: Batch, *, folds: bool) -> tuple[FoundSite, ...]:
    """The sites of a floating-point model's blocks, found on a few tokens. folds: whether to prove folds, too."""
    blocks = find_blocks(model)
    calls = capture_calls(model, blocks, [batch])[0]
    hidden = calls[0].hidden()
    found: list[FoundSite] = []
    for index, (name, block) in enumerate(zip(blocks.names, blocks.modules(model), strict=True)):
        call = calls[index].with_hidden(hidden)
        sites = discover_sites(block, call)
        proven = prove_folds(block, sites, call) if folds else [_no_fold(site) for site in sites]
        found += [_full(name, site, fold) for site, fold in zip(sites, proven, strict=True)]
        hidden = call.run(block)
    seen: dict[str, int] = {}
    with observed_inputs(model, [site.name for site in found], lambda name, x: seen.update({name: x.ndim})):
        model(**batch)
    return tuple(replace(site, dimensions=seen.get(site.name, site.dimensions)) for site in found)


def plan_folding(model: nn.Module, sites: tuple[FoundSite, ...], transforms: Mapping[str, ChannelTransform]) -> Folding:
    """Folds as much of the sites' transforms as is proven: scale and shift, the scale alone, or nothing.

    transforms: by site; a site without one keeps its input, so what it shares with others is not folded either.
    """
    wanted = {name: transform for name, transform in transforms.items() if not transform.is_identity}
    folding = Folding(reasons={site.name: site.fold.reason for site in sites if site.name in wanted})
    groups: dict[str, list[FoundSite]] = {}
    for site in sites:
        if site.fold.scale:
            groups.setdefault(site.fold.producer, []).append(site)
    for producer, group in groups.items():
        if any(site.name in wanted for site in group):
            _plan_producer(model, producer, group, wanted, folding)
    return folding


@torch.no_grad()
def apply_folding(model: nn.Module, sites: tuple[FoundSite, ...], folding: Folding) -> None:
    """Changes the floating-point modules concerned in place; others are the caller's. The outputs stay the same."""
    for site in sites:
        transform = folding.sites.get(site.name)
        for module in (model.get_submodule(name) for name in site.linears) if transform else ():
            if transform is not None and is_linear(module):
                _move_consumer(module, transform)
    for name, transform in folding.producers.items():
        fold_transform(model.get_submodule(name), transform)


def _plan_producer(
    model: nn.Module, producer: str, group: list[FoundSite], wanted: Mapping[str, ChannelTransform], folding: Folding
) -> None:
    module = model.get_submodule(producer)
    channels = _output_channels(module)
    parts = [wanted.get(site.name, ChannelTransform()) for site in group]
    maps = [site.fold.channel_map for site in group]
    scale = _scattered([part.scale for part in parts], maps, channels, 1.0)
    shift = _scattered([part.shift for part in parts], maps, channels, 0.0)
    concerned = [site for site in group if site.name in wanted]
    if scale is None:
        folding.reasons.update({site.name: f"{producer}: {_conflict(group, 'scales')}" for site in concerned})
        return
    obstacle = (
        _shift_obstacle(model, producer, module, group, shift) if any(part.shift is not None for part in parts) else ""
    )
    folded_shift = None if obstacle or shift is None or not bool(shift.any()) else shift
    folded_scale = scale if bool((scale != 1.0).any()) else None
    folding.producers[producer] = ChannelTransform(folded_shift, folded_scale)
    for site in concerned:
        own = wanted[site.name]
        keeps_shift = bool(obstacle) and own.shift is not None
        folding.sites[site.name] = ChannelTransform(None if obstacle else own.shift, own.scale)
        if keeps_shift:
            folding.reasons[site.name] = obstacle
        else:
            folding.reasons.pop(site.name, None)


def _shift_obstacle(
    model: nn.Module, producer: str, module: nn.Module, group: list[FoundSite], shift: torch.Tensor | None
) -> str:
    """Why the producer cannot take over the shift, "" if it can."""
    if getattr(module, "bias", None) is None:
        return f"{producer} has no bias to take the shift"
    if not all(site.fold.shift for site in group):
        return f"a shift of {producer}'s outputs does not arrive unchanged"
    if shift is None:
        return f"{producer}: {_conflict(group, 'shifts')}"
    for linear in (name for site in group for name in site.linears):
        if getattr(model.get_submodule(linear), "bias", None) is None:
            return f"{linear} has no bias to undo the shift in"
    return ""


def _conflict(group: list[FoundSite], what: str) -> str:
    if len(group) > 1:
        return f"the sites it feeds have different {what}"
    return f"input channels of {group[0].name} that come from one of its outputs have different {what}"


def _scattered(
    vectors: list[torch.Tensor | None], maps: list[torch.Tensor], channels: int, neutral: float
) -> torch.Tensor | None:
    """The sites' vectors in the producer's channels, float64 [channels]; None if two want different things of one."""
    result = torch.full((channels,), torch.nan, dtype=torch.float64)
    for vector, places in zip(vectors, maps, strict=True):
        values = torch.full((len(places),), neutral) if vector is None else vector.detach().cpu()
        before = result[places]
        result[places] = values.double()
        known = ~torch.isnan(before)
        if not torch.equal(result[places], values.double()) or not torch.equal(before[known], values.double()[known]):
            return None
    return torch.where(torch.isnan(result), neutral, result)


def _output_channels(module: nn.Module) -> int:
    return weight_matrix(module).shape[0] if is_linear(module) else module.get_parameter("weight").shape[0]


def _move_consumer(module: nn.Module, transform: ChannelTransform) -> None:
    """The weight and bias of the transformed input."""
    weight, bias = weight_matrix(module).double(), bias_vector(module)
    moved = ChannelTransform(
        *(None if v is None else v.to(weight.device, torch.float64) for v in (transform.shift, transform.scale))
    )
    set_weight(module, moved.fold_weight(weight), moved.fold_bias(weight, None if bias is None else bias.double()))


def _full(prefix: str, site: Site, fold: Fold) -> FoundSite:
    producer = f"{prefix}.{fold.producer}" if fold.producer else ""
    reason = f"{prefix}.{fold.reason}" if fold.producer and fold.reason else fold.reason
    linears = tuple(f"{prefix}.{linear}" for linear in site.linears)
    return FoundSite(f"{prefix}.{site.name}", linears, site.kind, replace(fold, producer=producer, reason=reason))


def _no_fold(site: Site) -> Fold:
    return Fold(site.name, "", NO_CHANNELS, False, False, "not looked for")
