"""One linear layer: products of a shape with equal copies of their weight, timed in turn with F.linear in bfloat16."""

import argparse
import copy
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from devices import CACHES, Device
from kinds import Kind, random_layer
from timing import Timing, Turn, relative_error
from torch.nn import functional

BASELINE = "bf16"

SHAPES = "4096x4096,11008x4096,4096x11008,28672x8192,8192x28672"
DRY_SHAPES = "256x128,128x384"

INPUTS = 4
"""Inputs that are used in turn."""

LEAST_COPIES = 2

FEW_TOKENS, PASSES = 64, 4
"""Up to so many tokens a product takes microseconds: more calls in a turn."""

LARGEST_ERROR = 0.01
"""Relative, against float64; the rounding of results to bfloat16 alone is about 0.0017."""

Forward = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Shape:
    """Of a weight."""

    outputs: int
    columns: int

    def __str__(self) -> str:
        return f"{self.outputs}×{self.columns}"


@dataclass(frozen=True)
class Product:
    """copies: the layer with its weight in several places. weight_bytes: of one, as stored, scales included.

    exact: what the layer computes, in float64.
    """

    copies: tuple[Forward, ...]
    weight_bytes: int
    exact: Forward

    def turn(self, inputs: tuple[torch.Tensor, ...], device: Device) -> Turn:
        """Calls over all copies and inputs; the last is on the last input."""
        passes = PASSES if inputs[0].shape[0] <= FEW_TOKENS else 1
        # A multiple of the number of inputs, so that the last call is on the last input.
        count = -(-max(len(self.copies), len(inputs)) * passes // len(inputs)) * len(inputs)
        calls = [partial(self.copies[i % len(self.copies)], inputs[i % len(inputs)]) for i in range(count)]
        return device.turn(calls)


@dataclass(frozen=True)
class Figures:
    """What one product gave in one case; error: relative, against float64."""

    timing: Timing
    captured: bool
    weight_bytes: int
    error: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        own = {"captured": self.captured, "weight_bytes": self.weight_bytes, "error": self.error}
        return {**self.timing.to_dict(), **own}


def copies_needed(weight_bytes: int, device: Device) -> int:
    """So many that no cache serves a weight that comes round again."""
    return max(LEAST_COPIES, -(-CACHES * device.cache_bytes // weight_bytes))


@torch.no_grad()
def our_product(kind: Kind, shape: Shape, device: Device) -> Product:
    """A random layer of ours, the rows of codes given up for what kernels read."""
    definition = random_layer(kind, shape.outputs, shape.columns, device.name)
    layers = [copy.deepcopy(definition) for _ in range(copies_needed(definition.weight_bytes(), device))]
    for layer in layers:
        layer.keep_packed()
    return Product(tuple(layers), definition.weight_bytes(), definition.fake_forward)


@torch.no_grad()
def bf16_product(shape: Shape, device: Device) -> Product:
    """F.linear."""
    size = (shape.outputs, shape.columns)
    weight = torch.empty(size, dtype=torch.bfloat16, device=device.name).normal_(std=shape.columns**-0.5)
    weights = [weight.clone() for _ in range(copies_needed(weight.nbytes, device))]
    copies = tuple(partial(_linear, each) for each in weights)
    return Product(copies, weight.nbytes, lambda x: x.double() @ weight.double().t())


def _linear(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return functional.linear(x, weight)


@torch.no_grad()
def measured(
    products: Mapping[str, Product],
    columns: int,
    tokens: int,
    device: Device,
    asked: argparse.Namespace,
    beside: Mapping[str, Turn] | None = None,
) -> tuple[dict[str, Figures], dict[str, Timing]]:
    """All products for so many tokens, and the times of what else takes its turn with them.

    A product that fails is told on standard error and left out.
    """
    size = (tokens, columns)
    inputs = tuple(torch.randn(size, device=device.name).to(torch.bfloat16) for _ in range(INPUTS))
    turns, errors = {}, {}
    for name, product in products.items():
        try:
            turns[name] = product.turn(inputs, device)
            errors[name] = relative_error(turns[name].poisoned(), product.exact(inputs[-1]))
        except Exception as error:  # whatever a kernel or a compiler raises: the other products are measured
            turns.pop(name, None)
            print(f"{name} failed at {tokens} tokens: {type(error).__name__}: {error}", file=sys.stderr)
    times = device.times({**turns, **(beside or {})}, asked.rounds, asked.seconds)
    found = {
        name: Figures(times[name], turn.captured, products[name].weight_bytes, errors[name])
        for name, turn in turns.items()
    }
    return found, {name: times[name] for name in beside or {}}


def shapes_of(text: str | None, device: Device) -> list[Shape]:
    """Of `OUTxIN,…`."""
    asked = text or (DRY_SHAPES if device.name == "cpu" else SHAPES)
    return [Shape(*(int(side) for side in each.split("x"))) for each in asked.split(",")]


def tokens_of(text: str | None, usual: str, dry: str, device: Device) -> list[int]:
    """Of `1,16,…`."""
    return [int(each) for each in (text or (dry if device.name == "cpu" else usual)).split(",")]


def wrong(name: str, shape: Shape, tokens: int, figures: Figures) -> str | None:
    """A line about an error that is too large."""
    if figures.error <= LARGEST_ERROR:
        return None
    return f"wrong: {name}, {shape}, {tokens} tokens: relative error {figures.error:.2g}"


def how(figures: Figures) -> str:
    """The cell that says how calls were made."""
    return "graph" if figures.captured else "calls"
