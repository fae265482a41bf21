"""Producers: which module's output channels are a site's input channels, so that a transform can be folded into it.

Proven by probing in float64, never by names: scale (or offset) the channels of a candidate's output by distinct random
numbers, find these in the inputs of linear layers, and finally undo them there and see the block's output unchanged.
"""

from dataclasses import dataclass, replace

import torch
from torch import nn

from channelwise.model.calls import BlockCall
from channelwise.model.disturbance import Disturbance, change_at, undone
from channelwise.model.experts import sibling_prefixes
from channelwise.model.linears import is_linear
from channelwise.model.matching import distinct_numbers, subsets
from channelwise.model.norms import norm_kind
from channelwise.model.probing import Change, Probe, Trace, changed_modules, differs, waking_noise
from channelwise.model.sites import Site

PROOF_TOLERANCE = 1e-9
NO_CHANNELS = torch.empty(0, dtype=torch.int64)
NOT_LINEAR = "the site's input is not proportional to its output"
UNDO_FAILS = "undoing it at the site does not restore the block's output"


@dataclass(frozen=True)
class Fold:
    """Whether and how a site's transform can be folded into the module that produces its input.

    producer: the module's name in the block, "" if none feeds the site. channel_map: int64 [channels], the producer's
    channel behind each input channel of the site. scale, shift: what is proven. reason: why not, "" if scale is proven.
    A producer may feed several sites: then each has a Fold, and they must be given the same transform.
    """

    site: str
    producer: str
    channel_map: torch.Tensor
    scale: bool
    shift: bool
    reason: str


def prove_folds(block: nn.Module, sites: tuple[Site, ...], call: BlockCall) -> tuple[Fold, ...]:
    """One Fold per site, in the order of the sites, found on a call that holds a hidden state (a few tokens)."""
    producers = tuple(
        name for name, module in block.named_modules() if name and (is_linear(module) or norm_kind(module))
    )
    prober = _Prober(Probe(block, call, producers), sites, torch.Generator().manual_seed(0))
    found: dict[str, Fold] = {}
    for producer in producers:
        for fold in prober.folds_of(producer):
            known = found.get(fold.site)
            if known is None or _tells_more(fold, known):
                found[fold.site] = fold
    _add_silent_experts(block, sites, found)
    return tuple(found.get(site.name) or _without_producer(site) for site in sites)


@dataclass(frozen=True)
class _Prober:
    probe: Probe
    sites: tuple[Site, ...]
    generator: torch.Generator

    def folds_of(self, producer: str) -> list[Fold]:
        """The folds into one producer, proven or refused, for each site that its channels reach."""
        recorded = self.probe.recorded.outputs.get(producer)
        if recorded is None:
            return []
        every = torch.arange(recorded[0].shape[-1])
        factors = distinct_numbers(len(every), self.generator)
        scaled = self._disturb(producer, every, factors, scale=True)
        reached = self._reached(scaled)
        maps = {site.name: scaled.match(site, factors, scale=True) for site in reached}
        why = self._other_reader(scaled)
        if not why and reached and not _complete(maps):
            maps = self._part_of(producer, factors, reached) or maps
        complete = _complete(maps)
        if not complete or why:
            return [_refused(site.name, producer, maps[site.name], why or NOT_LINEAR) for site in reached]
        shift = self._shifts(producer, complete)
        if shift and not self._restored(producer, complete, shift=True):
            shift = False
        if not self._restored(producer, complete, shift=False):
            return [_refused(name, producer, channels, UNDO_FAILS) for name, channels in complete.items()]
        return [Fold(name, producer, channels, True, shift, "") for name, channels in complete.items()]

    def _disturb(self, producer: str, image: torch.Tensor, numbers: torch.Tensor, scale: bool) -> Disturbance:
        noise = [waking_noise(y, self.generator) for y in self.probe.recorded.outputs[producer]]

        def run(change: Change) -> Trace:
            waiting = iter(noise)
            return self.probe.run(changes={producer: lambda y: change(next(waiting))}, frozen=self.probe.recorded)

        before, after = run(lambda y: y), run(change_at(image, numbers, scale))
        readers = [name for name in self.probe.recorded.inputs if name != producer]
        return Disturbance(before, after, tuple(changed_modules(before, after, readers)))

    def _reached(self, disturbed: Disturbance) -> list[Site]:
        return [site for site in self.sites if site.name in disturbed.changed]

    def _other_reader(self, disturbed: Disturbance) -> str:
        """Who reads the producer's output besides linear layers, or "" if nobody does."""
        if differs(disturbed.before.result, disturbed.after.result):
            return "a residual or a router reads it too (the block's output changes with it)"
        known = {linear for site in self.sites for linear in site.linears}
        others = [name for name in disturbed.changed if name not in known]
        return f"a residual reads it too (into {others[0]})" if others else ""

    def _part_of(
        self, producer: str, factors: torch.Tensor, reached: list[Site]
    ) -> dict[str, torch.Tensor | None] | None:
        """Maps into a part of a fused producer (value of q, k, v; up of gate, up), or None if no part is linear."""
        smallest = min(site.channels for site in reached)
        if len(factors) <= smallest:
            return None
        for part in subsets(len(factors), smallest):
            scaled = self._disturb(producer, part, factors[part], scale=True)
            found = {site.name: scaled.match(site, factors[part], scale=True) for site in self._reached(scaled)}
            maps = {name: part[channels] for name, channels in found.items() if channels is not None}
            if maps and len(maps) == len(found) and not self._other_reader(scaled):
                return {**{site.name: None for site in reached if site.name not in maps and site.name in found}, **maps}
        return None

    def _shifts(self, producer: str, maps: dict[str, torch.Tensor]) -> bool:
        """Whether offsets at the producer's mapped channels arrive unchanged at the same channels of the sites."""
        image = torch.cat(list(maps.values())).unique()
        offsets = distinct_numbers(len(image), self.generator)
        moved = self._disturb(producer, image, offsets, scale=False)
        if self._other_reader(moved) or {site.name for site in self._reached(moved)} != set(maps):
            return False
        for site in self._reached(moved):
            channels = moved.match(site, offsets, scale=False)
            if channels is None or not torch.equal(image[channels], maps[site.name]):
                return False
        return True

    def _restored(self, producer: str, maps: dict[str, torch.Tensor], shift: bool) -> bool:
        """Whether the unfrozen block gives its old output when the change is undone in front of the sites' layers."""
        count = self.probe.recorded.outputs[producer][0].shape[-1]
        factors = distinct_numbers(count, self.generator)
        offsets = distinct_numbers(count, self.generator) if shift else torch.zeros(count, dtype=torch.float64)
        image = torch.cat(list(maps.values())).unique()
        scaled, moved = change_at(image, factors[image], True), change_at(image, offsets[image], False)
        undo: dict[str, Change] = {}
        for site in self.sites:
            if site.name in maps:
                channels = maps[site.name]
                undo |= dict.fromkeys(site.linears, undone(factors[channels], offsets[channels]))
        result = self.probe.run(changes={producer: lambda y: moved(scaled(y))}, undo=undo).result
        expected = self.probe.recorded.result
        return bool((result - expected).abs().max() <= PROOF_TOLERANCE * expected.abs().max())


def _complete(maps: dict[str, torch.Tensor | None]) -> dict[str, torch.Tensor]:
    """The maps if every one was found, else nothing."""
    found = {name: channels for name, channels in maps.items() if channels is not None}
    return found if len(found) == len(maps) else {}


def _refused(site: str, producer: str, channels: torch.Tensor | None, why: str) -> Fold:
    return Fold(site, producer, NO_CHANNELS if channels is None else channels, False, False, f"{producer}: {why}")


def _without_producer(site: Site) -> Fold:
    where = "the block's own input" if site.kind == "stream" else "not the output of one norm or linear layer"
    return Fold(site.name, "", NO_CHANNELS, False, False, f"its input is {where}")


def _tells_more(fold: Fold, known: Fold) -> bool:
    """Proven before refused, and a refusal that found the channels before one that did not."""
    return (fold.scale, fold.channel_map.numel()) > (known.scale, known.channel_map.numel())


def _add_silent_experts(block: nn.Module, sites: tuple[Site, ...], found: dict[str, Fold]) -> None:
    """Gives experts that no token reached the folds of a sibling that some did."""
    for group in sibling_prefixes(block):
        for site in sites:
            own = next((prefix for prefix in group if site.name.startswith(prefix)), None)
            if own is None or site.name in found:
                continue
            twins = (found.get(prefix + site.name.removeprefix(own)) for prefix in group)
            twin = next((fold for fold in twins if fold is not None), None)
            if twin is not None:
                old = twin.site.removesuffix(site.name.removeprefix(own))
                inside = twin.producer.startswith(old)
                producer = own + twin.producer.removeprefix(old) if inside else twin.producer
                found[site.name] = replace(twin, site=site.name, producer=producer)
