"""What a candidate transform costs: the change of a site's output under the recipe's quantizers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear as apply_linear

from channelwise.engine.hooks import captured_call, run_until_seen, stand_ins
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
    input_step,
)
from channelwise.model.linears import bias_vector, weight_matrix
from channelwise.model.sites import Site
from channelwise.numerics.grids import Grid
from channelwise.numerics.quantizer import fake_quantize, parameters_of
from channelwise.numerics.transform import ChannelTransform
from channelwise.runtime.encoding import encoder_of
from channelwise.runtime.widening import WIDENED, wide_products

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
        transform = candidate.transform
        inputs = [self._quantized_input(transform, target.x, candidate.clip) for target in self._targets]
        by_layer = [self._outputs(layer, inputs, transform) for layer in range(len(self.site.linears))]
        return [
            _squared_differences(self._observe(target.run, outputs, target.x.dtype), target.seen)
            for target, *outputs in zip(self._targets, *by_layer, strict=True)
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
        bias = self._biases[layer]
        if transform.shift is not None:
            bias = transform.fold_bias(self.weights[layer], bias)
        parts: list[list[torch.Tensor]] = [[] for _ in self._targets]
        done = 0
        for rows in weight:
            own = None if bias is None else bias[done : done + len(rows)]
            for part, target in zip(parts, self._targets, strict=True):
                part.append(_product(transform.apply(target.x.float()), rows, own))
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
    def _biases(self) -> tuple[torch.Tensor | None, ...]:
        found = [bias_vector(m) for m in self._modules]
        return tuple(None if b is None else b.detach().float() for b in found)

    @cached_property
    def _targets(self) -> "list[_Target]":
        """What the search samples of this rank that reach the site give with the unquantized weights."""
        found = []
        for run in self.runs:
            x = self._site_input(run)
            if x is None:
                continue
            onward = self._scope_run(run)
            outputs = [self._outputs(layer, [x.float()], None)[0] for layer in range(len(self.site.linears))]
            kept = outputs if self.dependents else []
            found.append(_Target(onward, x, kept, self._observe(onward, outputs, x.dtype)))
        return found

    def _outputs(
        self, layer: int, inputs: Sequence[torch.Tensor], transform: ChannelTransform | None
    ) -> list[torch.Tensor]:
        """What a layer gives for each input, its weight transformed and quantized, or as it is without a transform.

        A few rows of the weight at a time: in float32 a large one is twice what it is in the model. Where others depend
        on the output, it is in the model's dtype, in which it goes on.
        """
        module = self._modules[layer]
        matrix, bias = weight_matrix(module).detach(), self._biases[layer]
        dtype = matrix.dtype if self.dependents else torch.float32
        parts: list[list[torch.Tensor]] = [[] for _ in inputs]
        for rows in self._row_parts(matrix, quantized=transform is not None):
            weight, own = matrix[rows].float(), None if bias is None else bias[rows]
            if transform is not None:
                own, weight = transform.fold_bias(weight, own), self._quantized_weight(transform, weight)
            for part, x in zip(parts, inputs, strict=True):
                part.append(apply_linear(x, weight, own).to(dtype))
        return [part[0] if len(part) == 1 else torch.cat(part, dim=-1) for part in parts]

    def _row_parts(self, matrix: torch.Tensor, *, quantized: bool) -> list[slice]:
        """Rows that are widened at a time; all where they share scales."""
        if quantized and self.weight_plan.granularity.kind not in ("row", "row_group"):
            return [slice(0, len(matrix))]
        return _few_rows(matrix)

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

    def _quantized_weight(self, transform: ChannelTransform, weight: torch.Tensor) -> torch.Tensor:
        scheme = self.weight_plan.scheme
        folded = transform.fold_weight(weight)
        return fake_quantize(
            folded, parameters_of(folded, scheme.grid, scheme.granularity), scheme.grid, scheme.granularity
        )

    def _quantized_input(self, transform: ChannelTransform, x: torch.Tensor, clip: float) -> torch.Tensor:
        """The decoded input codes, still transformed, float32."""
        if self.input_plan is None:
            return transform.apply(x.float())
        scheme = self.input_plan.scheme
        step, zero_point = None, None
        if scheme.kind == "static":
            step, zero_point = input_step(self.statistics, transform, scheme.grid, clip)
        encoder = encoder_of(scheme, transform, step, zero_point, None)
        return transform.apply(x.float()) if encoder is None else encoder(x).values()


def _few_rows(matrix: torch.Tensor) -> list[slice]:
    """Rows that are widened at a time."""
    count, columns = matrix.shape
    step = max(1, WIDENED // columns)
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """A few rows of the weight at a time: libraries copy a whole one into an order of their own."""
    parts = _few_rows(weight)
    biases = [None if bias is None else bias[rows] for rows in parts]
    outputs = [apply_linear(x, weight[rows], own) for rows, own in zip(parts, biases, strict=True)]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)


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
