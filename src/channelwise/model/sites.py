"""Sites: which linear layers of a block read one and the same tensor, and how they depend on each other.

Everything is found by running the block; nothing about an architecture is assumed.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from channelwise.errors import InputError
from channelwise.model.calls import BlockCall
from channelwise.model.experts import sibling_prefixes
from channelwise.model.linears import linear_names, weight_matrix
from channelwise.model.probing import CHANGE_TOLERANCE, Probe, Trace, changed_modules, noise_like
from channelwise.model.routers import proven_routers


@dataclass(frozen=True)
class Site:
    """The linear layers of one block that read the same input tensor; all names are relative to the block.

    name: the first layer's name. linears: in execution order. kind: "stream" if the input depends on the block's input
    without passing through another linear layer, else "inner"; "head" is a model's output layer, not found here.
    level: 0 if no other site feeds this one, else one more than the highest that does. dependents: names of the sites
    fed directly. mixes_tokens: whether a token reaches other tokens on the way there (attention). scope: the innermost
    module that holds this site's and its dependents' layers.
    """

    name: str
    linears: tuple[str, ...]
    channels: int
    kind: Literal["stream", "inner", "head"]
    level: int
    dependents: tuple[str, ...]
    mixes_tokens: bool
    scope: str


def discover_sites(block: nn.Module, call: BlockCall) -> tuple[Site, ...]:
    """The sites of a block in execution order, found on a call that holds a hidden state (a few tokens are enough).

    Experts that no token of the call reached get the sites of a like expert that was reached, at the end. A linear
    layer that was not called otherwise belongs to no site. Raises InputError if no linear layer was called.
    """
    probe = _probe_without_routers(block, call)
    groups = _same_input_groups(probe.recorded)
    if not groups:
        raise InputError(f"{type(block).__name__} calls none of its linear layers: nothing to quantize")
    generator = torch.Generator().manual_seed(0)
    edges = _edges(probe, groups, generator)
    stream = _stream_sites(probe, groups, edges, generator)
    levels = _levels(edges)
    sites = tuple(
        Site(
            name=name,
            linears=linears,
            channels=weight_matrix(block.get_submodule(name)).shape[1],
            kind="stream" if name in stream else "inner",
            level=levels[name],
            dependents=edges[name],
            mixes_tokens=_mixes_tokens(probe, groups, name, edges[name], generator),
            scope=_scope(linears + tuple(linear for other in edges[name] for linear in groups[other])),
        )
        for name, linears in groups.items()
    )
    return _with_silent_experts(block, sites, probe.watched)


def hold_again(block: nn.Module, call: BlockCall, sites: Collection[Site]) -> bool:
    """Whether sites found in a block are another one's too, which is built alike: one run tells who reads what.

    Experts that no token of the call reached are taken on trust.
    """
    known = {site.linears for site in sites}
    names = {linear for linears in known for linear in linears}
    experts = tuple(prefix for group in sibling_prefixes(block) for prefix in group)
    needed = {linears for linears in known if not linears[0].startswith(experts)}
    groups = _same_input_groups(Probe(block, call, linear_names(block)).recorded).values()
    called = {tuple(linear for linear in group if linear in names) for group in groups} - {()}
    return needed <= called <= known


def _probe_without_routers(block: nn.Module, call: BlockCall) -> Probe:
    """A probe that watches every linear layer but those that choose or weigh experts: these stay as they are."""
    probe = Probe(block, call, linear_names(block))
    routers = proven_routers(block, probe)
    return Probe(block, call, [name for name in probe.watched if name not in routers]) if routers else probe


def _same_input_groups(trace: Trace) -> dict[str, tuple[str, ...]]:
    """Layers by input tensor, {first layer: layers}; views of one tensor as other rows of channels are the same."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, places in trace.places.items():
        groups.setdefault(tuple(places), []).append(name)
    return {names[0]: tuple(names) for names in groups.values()}


def _edges(probe: Probe, groups: dict[str, tuple[str, ...]], generator: torch.Generator) -> dict[str, tuple[str, ...]]:
    """For each site the later ones whose input changes when its outputs do, in execution order."""
    edges: dict[str, tuple[str, ...]] = {}
    order = list(groups)
    # Backwards, because what follows from a layer that could not be frozen is only known from its own edges.
    for index, name in reversed(list(enumerate(order))):
        changes = {linear: lambda y: y + noise_like(y, generator) for linear in groups[name]}
        moved = probe.run(changes=changes, frozen=probe.recorded)
        edges[name] = _directly_changed(probe, moved, order[index + 1 :], edges)
    return {name: edges[name] for name in order}


def _stream_sites(
    probe: Probe, groups: dict[str, tuple[str, ...]], edges: dict[str, tuple[str, ...]], generator: torch.Generator
) -> tuple[str, ...]:
    hidden = probe.call.hidden()
    moved = probe.run(hidden=hidden + noise_like(hidden, generator), frozen=probe.recorded)
    return _directly_changed(probe, moved, list(groups), edges)


def _directly_changed(
    probe: Probe, moved: Trace, names: list[str], edges: dict[str, tuple[str, ...]]
) -> tuple[str, ...]:
    """Sites whose input changed, but not only because an expert before them got other tokens, or none any more."""
    computed = {name for name in names if name in moved.live or name not in moved.inputs}
    indirect = {other for name in computed for other in edges.get(name, ())}
    return tuple(name for name in changed_modules(probe.recorded, moved, names) if name not in indirect)


def _levels(edges: dict[str, tuple[str, ...]]) -> dict[str, int]:
    """Longest path to each site; edges only go forward in execution order."""
    levels = dict.fromkeys(edges, 0)
    for name, dependents in edges.items():
        for other in dependents:
            levels[other] = max(levels[other], levels[name] + 1)
    return levels


def _mixes_tokens(
    probe: Probe, groups: dict[str, tuple[str, ...]], name: str, dependents: tuple[str, ...], generator: torch.Generator
) -> bool:
    """Whether a change at one token changes a dependent's input at more than one.

    The first token is seen by all later ones under a causal mask; one in the middle is tried too, in case of padding.
    """
    tokens = probe.recorded.inputs[name][0].shape[-2]
    for token in {0, tokens // 2}:
        changes = {linear: lambda y, token=token: _moved_at(y, token, generator) for linear in groups[name]}
        moved = probe.run(changes=changes, frozen=probe.recorded)
        if any(_changed_rows(probe.recorded.inputs[other], moved.inputs.get(other, [])) > 1 for other in dependents):
            return True
    return False


def _moved_at(y: torch.Tensor, token: int, generator: torch.Generator) -> torch.Tensor:
    rows = y.reshape(-1, y.shape[-1]).clone()
    rows[token] += noise_like(rows[token], generator)
    return rows.view(y.shape)


def _changed_rows(old: list[torch.Tensor], new: list[torch.Tensor]) -> int:
    """How many tokens of the new inputs are not among the old: an expert's tokens may have come, gone or moved."""
    count = 0
    for before, after in zip(old, new, strict=False):
        before, after = before.reshape(-1, before.shape[-1]), after.reshape(-1, after.shape[-1])
        if before.shape == after.shape:
            after = after[(after != before).any(dim=1)]
        smallest = CHANGE_TOLERANCE * before.abs().amax() if before.numel() else 0.0
        count += sum(bool(((before - row).abs().amax(dim=1) > smallest).all()) for row in after)
    return count


def _scope(linears: tuple[str, ...]) -> str:
    parents = [name.split(".")[:-1] for name in linears]
    shared = []
    for parts in zip(*parents, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def _with_silent_experts(block: nn.Module, sites: tuple[Site, ...], watched: Collection[str]) -> tuple[Site, ...]:
    """Adds the sites of experts that were not called, as copies of a called sibling's."""
    present = {linear for site in sites for linear in site.linears}
    missing = {name for name in watched if name not in present}
    copies: dict[str, list[Site]] = {}
    for group in sibling_prefixes(block):
        called = next((prefix for prefix in group if any(linear.startswith(prefix) for linear in present)), None)
        for prefix in group:
            if called is None or not any(name.startswith(prefix) for name in missing):
                continue
            for site in sites:
                renamed = _renamed(site, called, prefix)
                if site.name.startswith(called) and set(renamed.linears) <= missing:
                    copies.setdefault(site.name, []).append(renamed)
    new = tuple(copy for group_copies in copies.values() for copy in group_copies)
    extended = (replace(site, dependents=site.dependents + _extra_dependents(site, copies)) for site in sites)
    return (*extended, *new)


def _renamed(site: Site, old: str, new: str) -> Site:
    def rename(name: str) -> str:
        return new + name.removeprefix(old) if name.startswith(old) else name

    return replace(
        site,
        name=rename(site.name),
        linears=tuple(map(rename, site.linears)),
        dependents=tuple(map(rename, site.dependents)),
        scope=rename(site.scope + ".").removesuffix("."),
    )


def _extra_dependents(site: Site, copies: dict[str, list[Site]]) -> tuple[str, ...]:
    """Copies of this site's dependents, unless the copy belongs to a copy of this very site."""
    own = {other for copy in copies.get(site.name, []) for other in copy.dependents}
    return tuple(copy.name for name in site.dependents for copy in copies.get(name, []) if copy.name not in own)
