"""How a module keeps the weights of many experts in one parameter: found by trying, not by its class.

A small copy of the module, with random weights in float64, runs beside experts that are made of linear layers. The
layout under which both compute the same is the module's; without one it is not taken apart.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import torch
from torch import nn

TOKENS = 24
"""Rows of the trial."""
SPREAD = 2.0
"""Standard deviation of the trial's numbers: gates saturate, and limits are met."""
SAME = 1e-9
"""How far both may be from each other, as a share of the largest output."""

Call = Literal["routed", "parts", "sizes"]
Gate = Literal["plain", "own", "none"]
Matrix = tuple[torch.Tensor, torch.Tensor | None]
"""A linear layer's weight [out, in] and bias [out]."""


@dataclass(frozen=True)
class Layout:
    """How experts lie in a fused module.

    transposed: matrices are [experts, in, out]. interleaved: rows of gate and up take turns. gate: how an expert's
    inner value comes about: "plain" act_fn(gate) * up, "own" the module's method for it, "none" act_fn(up).
    call: how the module is called: "routed" (inputs, chosen experts, their weights), "parts" (inputs of all experts
    behind each other, as many for each), "sizes" (inputs sorted by expert, how many of each; no gate, one matrix).
    """

    transposed: bool
    interleaved: bool
    gate: Gate
    call: Call


@dataclass(frozen=True)
class ExpertWeights:
    """One expert's matrices, views of the fused module's. gate is None without one."""

    gate: Matrix | None
    up: Matrix
    down: Matrix


@dataclass(frozen=True)
class Gating:
    """A fused module's own way from gate and up to the inner value; the module without its weights does it."""

    module: nn.Module
    interleaved: bool

    @classmethod
    def of(cls, fused: nn.Module, layout: Layout) -> "Gating":
        """The way of this fused module."""
        return cls(_copied(fused, {}), layout.interleaved)

    def __call__(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """gate, up: [tokens, inner]. Returns the same shape."""
        joined = torch.stack([gate, up], dim=-1).flatten(-2) if self.interleaved else torch.cat([gate, up], dim=-1)
        way: Callable[[torch.Tensor], torch.Tensor] = getattr(self.module, "_apply_gate")  # noqa: B009 (is no module)
        return way(joined)


def is_fused(module: nn.Module) -> bool:
    """Whether the module's own parameters are the matrices of several experts."""
    own = own_parameters(module)
    return any(name in own and own[name].ndim == 3 for name in ("gate_up_proj", "up_proj", "down_proj"))


def may_be_linears(module: nn.Module) -> bool:
    """Whether the module's only parameter is a `weight` of three dimensions: linear layers side by side, perhaps."""
    own = own_parameters(module)
    return not type(module).__module__.startswith("torch.") and set(own) == {"weight"} and own["weight"].ndim == 3


def own_parameters(module: nn.Module) -> dict[str, torch.Tensor]:
    """The module's parameters without those of its children."""
    return {name: value.detach() for name, value in module.named_parameters(recurse=False)}


def proven_layout(module: nn.Module, build: Callable[[nn.Module, Layout], nn.Module]) -> Layout | None:
    """The layout under which `build` gives a module that computes what this one does; None if there is none.

    The module may be on the meta device: it is tried with weights of its own.
    """
    for layout in _candidates(module):
        # A layout that does not fit makes the trial fail in any way; what it raises says nothing more.
        # transformers loads under torch.device("meta"), where nothing could be compared.
        with suppress(Exception), torch.no_grad(), torch.device("cpu"):
            small = _small(module, layout)
            inputs = _inputs(small, layout)
            expected, given = small(*inputs), build(small, layout)(*inputs)
            if expected.shape == given.shape and _close(expected, given) and _pairs_gate_and_up(small, layout):
                return layout
    return None


def expert_weights(module: nn.Module, layout: Layout) -> Iterator[ExpertWeights]:
    """The weights of every expert of a module with gate (if any), up and down."""
    own = _upright(module, layout)
    first = "up_proj" if layout.gate == "none" else "gate_up_proj"
    for index in range(own[first].shape[0]):
        weight, bias = own[first][index], own[f"{first}_bias"][index] if f"{first}_bias" in own else None
        down = own["down_proj"][index], own["down_proj_bias"][index] if "down_proj_bias" in own else None
        if layout.gate == "none":
            yield ExpertWeights(None, (weight, bias), down)
            continue
        gate, up = (_half(weight, bias, half, layout.interleaved) for half in (0, 1))
        yield ExpertWeights(gate, up, down)


def linear_weights(module: nn.Module, layout: Layout) -> list[torch.Tensor]:
    """The matrices [out, in] of linear layers side by side, views of the module's weight."""
    return list(_upright(module, layout)["weight"])


def _half(weight: torch.Tensor, bias: torch.Tensor | None, half: int, interleaved: bool) -> Matrix:
    inner = weight.shape[0] // 2
    rows = slice(half, None, 2) if interleaved else slice(half * inner, (half + 1) * inner)
    return weight[rows], None if bias is None else bias[rows]


def _upright(module: nn.Module, layout: Layout) -> dict[str, torch.Tensor]:
    """The parameters with matrices as [experts, out, in]."""
    own = own_parameters(module)
    return {name: value.mT if layout.transposed and value.ndim == 3 else value for name, value in own.items()}


def _candidates(module: nn.Module) -> Iterator[Layout]:
    """Layouts that the parameters' names and shapes allow, the usual ones first."""
    own = own_parameters(module)
    # Weights of what belongs to all experts (an activation's, a norm's) would have no place among single experts.
    if any(True for child in module.children() for _ in child.parameters()):
        return
    if may_be_linears(module):
        yield from (Layout(transposed, False, "none", "sizes") for transposed in (False, True))
        return
    first = next((name for name in ("gate_up_proj", "up_proj") if name in own), "gate_up_proj")
    if not {first, "down_proj"} <= set(own) <= {first, "down_proj", f"{first}_bias", "down_proj_bias"}:
        return
    gates: tuple[Gate, ...] = ("plain", "own") if first == "gate_up_proj" else ("none",)
    calls: tuple[Call, ...] = ("routed", "parts")
    for transposed, call, interleaved, gate in product((False, True), calls, (False, True), gates):
        layout = Layout(transposed, interleaved, gate, call)
        if _fits(_upright(module, layout), first) and hasattr(module, "_apply_gate" if gate == "own" else "act_fn"):
            yield layout


def _fits(own: dict[str, torch.Tensor], first: str) -> bool:
    """Whether the shapes are those of gate and up, [experts, 2 inner, hidden], or up, and down, with biases or not."""
    if own[first].ndim != 3 or own["down_proj"].ndim != 3:
        return False
    experts, hidden, inner = own["down_proj"].shape
    rows = inner if first == "up_proj" else 2 * inner
    biases = {f"{first}_bias": (experts, rows), "down_proj_bias": (experts, hidden)}
    return own[first].shape == (experts, rows, hidden) and all(
        own[name].shape == shape for name, shape in biases.items() if name in own
    )


def _small(module: nn.Module, layout: Layout) -> nn.Module:
    """A copy of the module with few channels, whose weights are random numbers in float64."""
    own = _upright(module, layout)
    generator = torch.Generator().manual_seed(0)
    sizes = _small_sizes(*own["weight" if layout.call == "sizes" else "down_proj"].shape)
    parameters = {}
    for name, value in own_parameters(module).items():
        shape = [sizes[size] for size in value.shape]
        parameters[name] = torch.randn(shape, generator=generator, dtype=torch.float64) * SPREAD
    small = _copied(module, parameters)
    for name, value in module.__dict__.items():
        if type(value) is int:
            small.__dict__[name] = sizes.get(value, value)
    if hasattr(module, "config"):
        config: Any = copy.copy(module.config)
        config._experts_implementation = "eager"
        small.__dict__["config"] = config
    return small


def _small_sizes(experts: int, outer: int, inner: int) -> dict[int, int]:
    """Small sizes in place of the module's, one for each; the number of experts stays, unless it is such a size."""
    small = {experts: experts, inner: 4, 2 * inner: 8}
    small[outer] = small[outer] if outer in (inner, 2 * inner) else 6
    return small


def _copied(module: nn.Module, parameters: dict[str, torch.Tensor]) -> nn.Module:
    """A copy with these parameters and no other; everything else is the module's own."""
    other: nn.Module = object.__new__(type(module))
    other.__dict__.update(module.__dict__)
    other.__dict__["_parameters"] = {
        name: nn.Parameter(value, requires_grad=False) for name, value in parameters.items()
    }
    other.__dict__["_modules"] = dict(module._modules)
    return other


def _inputs(small: nn.Module, layout: Layout) -> tuple[Any, ...]:
    """What the small module is called with; rows of zeros are among the inputs, and experts without a token."""
    own = _upright(small, layout)
    generator = torch.Generator().manual_seed(1)
    matrices = own["weight" if layout.call == "sizes" else "up_proj" if layout.gate == "none" else "gate_up_proj"]
    experts, channels = matrices.shape[0], matrices.shape[2]
    rows = TOKENS * experts if layout.call == "parts" else TOKENS
    hidden = torch.randn(rows, channels, generator=generator, dtype=torch.float64) * SPREAD
    hidden[::3] = 0.0
    if layout.call == "parts":
        return (hidden,)
    if layout.call == "sizes":
        counts = torch.randint(experts, (TOKENS,), generator=generator).bincount(minlength=experts)
        return hidden, counts.tolist()
    choices = min(2, experts)
    chosen = torch.rand(TOKENS, experts, generator=generator).topk(choices).indices
    return hidden, chosen, torch.rand(TOKENS, choices, generator=generator, dtype=torch.float64)


def _pairs_gate_and_up(small: nn.Module, layout: Layout) -> bool:
    """Whether an inner value comes from one row of gate and one of up; a module's own way hides if they are others."""
    if layout.gate != "own":
        return True
    gating = Gating.of(small, layout)
    inner = _upright(small, layout)["down_proj"].shape[2]
    generator = torch.Generator().manual_seed(2)
    gate, up, other = (torch.randn(TOKENS, inner, generator=generator, dtype=torch.float64) for _ in range(3))
    first = torch.arange(inner) == 0
    before = gating(gate, up)
    changed = [gating(torch.where(first, other, gate), up), gating(gate, torch.where(first, other, up))]
    return all(torch.equal((after != before).any(dim=0), first) for after in changed)


def _close(expected: torch.Tensor, given: torch.Tensor) -> bool:
    largest = expected.abs().amax()
    return bool(largest > 0) and bool((given - expected).abs().amax() <= SAME * largest)
