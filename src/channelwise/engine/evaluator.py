"""What a candidate transform costs: the change of a site's output under the recipe's quantizers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import nn

from channelwise.engine.hooks import captured_call, run_until_seen, stand_ins
from channelwise.engine.layer_outputs import LayerOutputs, product
from channelwise.engine.plan import InputPlan, WeightPlan
from channelwise.engine.sampling import TokenSampler
from channelwise.engine.world import ALONE, World
from channelwise.methods.site import (
    Candidate,
    ChannelStatistics,
    Choice,
    Importance,
    LayerChoice,
    SiteView,
)
from channelwise.model.linears import weight_matrix
from channelwise.model.sites import Site
from channelwise.numerics.grids import Grid
from channelwise.numerics.transform import ChannelTransform
from channelwise.runtime.widening import wide_products

CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4)
"""Shares of the calibration range that a searched clip tries."""


@dataclass(frozen=True)
class _Target:
    """One search sample at a site, unquantized.

    run: runs on from the site. x: the site's input. outputs: of the layers, where others depend on them. seen: what is
    compared.
    """

    run: Callable[[], Any]
    x: torch.Tensor
    outputs: list[torch.Tensor]
    seen: list[torch.Tensor]

    @property
    def tokens(self) -> int:
        """How many tokens the sample has here."""
        return self.x.numel() // self.x.shape[-1]


@dataclass(frozen=True)
class SiteEvaluator:
    """A site as methods see it (`methods.site.SiteView`), with the loss of OS+ (arXiv 2304.09145, eq. 9).

    The output that is compared is: for several linear layers on one input (q, k, v; gate, up), and for a fused one
    that attention follows, what reaches the next linear layers (so softmax(qkᵀ)v and act(gate)·up, whatever the
    architecture does in between); for a single layer its own output.

    runs: one callable per search sample that runs the block on it; all_runs: by its number one per calibration sample,
    of which `samples` takes the sampler's tokens. Both are of this rank's samples: what is seen of them is put together
    over the world's ranks, which all have to ask at once. importance_of: by layer, of those tokens.
    """

    block: nn.Module
    site: Site
    statistics: ChannelStatistics
    runs: Sequence[Callable[[], Any]]
    weight_plan: WeightPlan
    input_plan: InputPlan | None
    dependents: tuple[str, ...]
    all_runs: Mapping[int, Callable[[], Any]] = field(default_factory=dict)
    sampler: TokenSampler = field(default_factory=TokenSampler)
    importance_of: Mapping[str, Importance | None] = field(default_factory=dict)
    same_tokens: bool = True
    world: World = ALONE

    @property
    def weight_grids(self) -> tuple[Grid, ...]:
        """The grids that the weights may have."""
        return self.weight_plan.grids

    @property
    def input_grids(self) -> tuple[Grid, ...]:
        """The grids that the site's input may have; none where it stays floating point."""
        return () if self.input_plan is None else self.input_plan.grids

    @cached_property
    def samples(self) -> torch.Tensor:
        """The sampler's tokens of the site's input, float32 [tokens, channels]."""
        inputs = [(index, self._site_input(run)) for index, run in self.all_runs.items()]
        chosen = [self.sampler.chosen(index, x).float() for index, x in inputs if x is not None]
        none = torch.empty(0, self.site.channels, device=self.weights[0].device)
        return self.world.joined(torch.cat([none, *chosen]))

    @property
    def importance(self) -> list[Importance | None]:
        """By layer; None where nothing is known. Where an expert got other tokens since, all tokens count alike."""
        found = [self.importance_of.get(name) for name in self.site.linears]
        return [None if part is None else self._of_samples(part) for part in found]

    def _of_samples(self, part: Importance) -> Importance:
        if self.same_tokens and len(part.tokens) == len(self.samples):
            return part
        return replace(part, tokens=part.outputs.new_ones(len(self.samples)))

    @cached_property
    def weights(self) -> tuple[torch.Tensor, ...]:
        """Float32 weights [out_features, channels] of the site's layers."""
        return tuple(weight_matrix(m).detach().float() for m in self._modules)

    def solved(self, solve: Callable[[int], LayerChoice], costs: Sequence[float]) -> tuple[LayerChoice, ...]:
        """What `solve` gives for each layer: the costliest first, to the rank with the least to do so far."""
        owners, load = {}, [0.0] * self.world.size
        for layer in sorted(range(len(costs)), key=lambda layer: -costs[layer]):
            owners[layer] = load.index(min(load))
            load[owners[layer]] += costs[layer]
        own = {layer: solve(layer) for layer, owner in owners.items() if owner == self.world.rank}
        if self.world.size == 1:
            return tuple(own[layer] for layer in range(len(costs)))
        # What is pickled on one GPU comes out on that GPU, which is another rank's.
        portable = {layer: choice.to("cpu") for layer, choice in own.items()}
        found = {layer: choice for part in self.world.gathered(portable) for layer, choice in part.items()}
        return tuple(found[layer].to(self.weights[layer].device) for layer in range(len(costs)))

    def loss(self, transform: ChannelTransform, clip: float = 1.0) -> float:
        """Sum over features, mean over tokens, of the squared output difference."""
        return self.losses([Candidate(transform, clip)])[0]

    def losses(self, candidates: Sequence[Candidate]) -> list[float]:
        """The loss of each candidate."""
        return self._means([self._errors(candidate) for candidate in candidates])

    def _errors(self, candidate: Candidate) -> list[list[torch.Tensor]]:
        """By target what changes, as squared sums [], left on the device."""
        tried = self._layers.tried(candidate, [target.x for target in self._targets])
        return [
            _squared_differences(self._observe(target.run, outputs, target.x.dtype), target.seen)
            for target, outputs in zip(self._targets, tried, strict=True)
        ]

    def weight_loss(self, transform: ChannelTransform, linear: str, weight: Iterable[torch.Tensor]) -> float:
        """The same for one layer's rounded weight, its inputs and the site's other layers in floating point.

        weight: the values of the codes, of the transformed weight, float32 [out_features, channels], some rows after
        the other: no more is in float32 at one time.
        """
        index = self.site.linears.index(linear)
        errors = []
        for target, changed in zip(self._targets, self._changed(transform, index, weight), strict=True):
            if self.dependents:
                outputs = [*target.outputs[:index], changed, *target.outputs[index + 1 :]]
                errors.append(_squared_differences(self._observe(target.run, outputs, target.x.dtype), target.seen))
            else:
                errors.append(_squared_differences([changed], [target.seen[index]]))
        return self._means([errors])[0]

    def _changed(self, transform: ChannelTransform, layer: int, weight: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        """By target what a layer gives with another transformed weight, of which some rows come after the other."""
        bias = self._layers.biases[layer]
        if transform.shift is not None:
            bias = transform.fold_bias(self.weights[layer], bias)
        parts: list[list[torch.Tensor]] = [[] for _ in self._targets]
        done = 0
        for rows in weight:
            own = None if bias is None else bias[done : done + len(rows)]
            for part, target in zip(parts, self._targets, strict=True):
                part.append(product(transform.apply(target.x.float()), rows, own))
            done += len(rows)
        return [torch.cat(part, dim=-1) for part in parts]

    def _means(self, errors: Sequence[Sequence[Sequence[torch.Tensor]]]) -> list[float]:
        """Each candidate's errors by target, summed over all ranks' targets in float64, over their tokens.

        One look at the device and one exchange between the ranks, however many candidates there are.
        """
        flat = [error for candidate in errors for target in candidate for error in target]
        numbers = iter(torch.stack(flat).tolist() if flat else ())
        totals = [sum((sum(islice(numbers, len(target))) for target in candidate), 0.0) for candidate in errors]
        tokens = float(sum(target.tokens for target in self._targets))
        *totals, count = self.world.totals([*totals, tokens])
        return [total / max(count, 1.0) for total in totals]

    @cached_property
    def _modules(self) -> tuple[nn.Module, ...]:
        return tuple(self.block.get_submodule(name) for name in self.site.linears)

    @cached_property
    def _layers(self) -> LayerOutputs:
        """Where others depend on the outputs, they are in the model's dtype, in which they go on."""
        dependent = bool(self.dependents)
        return LayerOutputs(self._modules, self.statistics, self.weight_plan, self.input_plan, own_dtype=dependent)

    @cached_property
    def _targets(self) -> "list[_Target]":
        """What the search samples of this rank that reach the site give with the unquantized weights."""
        found = []
        for run in self.runs:
            x = self._site_input(run)
            if x is None:
                continue
            onward = self._scope_run(run)
            outputs = self._layers.plain(x)
            kept = outputs if self.dependents else []
            found.append(_Target(onward, x, kept, self._observe(onward, outputs, x.dtype)))
        return found

    def _site_input(self, run: Callable[[], Any]) -> torch.Tensor | None:
        seen: list[torch.Tensor] = []
        run_until_seen(run, self.block, self.site.linears[:1], lambda _, x: seen.append(x.detach().clone()))
        return seen[0] if seen and seen[0].numel() else None

    def _scope_run(self, run: Callable[[], Any]) -> Callable[[], Any]:
        """Runs only the innermost module that holds the site and what it feeds, on its recorded arguments."""
        if not self.dependents:
            return run
        call = captured_call(run, self.block, self.site.scope)
        scope = self.block.get_submodule(self.site.scope)
        if call is None:
            return run
        args, kwargs = call
        return lambda: scope(*args, **kwargs)

    def _observe(
        self, run: Callable[[], Any], outputs: Sequence[torch.Tensor], dtype: torch.dtype
    ) -> list[torch.Tensor]:
        """The outputs themselves, or what they become at the inputs of the dependent sites."""
        if not self.dependents:
            return list(outputs)
        given = dict(zip(self.site.linears, outputs, strict=True))
        forwards = {name: _constant(output.to(dtype)) for name, output in given.items()}
        seen: dict[str, torch.Tensor] = {}
        with stand_ins(self.block, forwards), wide_products(self.block):
            run_until_seen(run, self.block, self.dependents, lambda name, x: seen.__setitem__(name, x.detach()))
        return [seen[name] for name in self.dependents]


def _squared_differences(seen: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [(s.float() - t.float()).square().sum() for s, t in zip(seen, targets, strict=True)]


def _constant(output: torch.Tensor) -> Callable[..., torch.Tensor]:
    return lambda *args, **kwargs: output


def with_searched_clip(choice: Choice, site: SiteView) -> Choice:
    """The choice with the share of `CLIPS` that has the least loss; 1 is among them, so the loss never rises."""
    losses = dict(zip(CLIPS, site.losses([Candidate(choice.transform, clip) for clip in CLIPS]), strict=True))
    clip = min(losses, key=losses.__getitem__)
    return replace(choice, clip=clip, notes={**choice.notes, "clip": clip, "loss": losses[clip]})


def loss_dependents(site: Site) -> tuple[str, ...]:
    """Where the loss of this site is measured: at the inputs of these sites, or () for its own output."""
    return site.dependents if len(site.linears) > 1 or site.mixes_tokens else ()
