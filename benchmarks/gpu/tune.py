"""Which tile configuration of our kernels is the fastest, for each kind, shape and number of tokens.

    PYTHONPATH=src python benchmarks/gpu/tune.py --kinds w8a8-channel --shapes 4096x4096 --tokens 512,2048
    PYTHONPATH=src python benchmarks/gpu/tune.py --device cpu          (a dry run: all configurations are alike)

The candidates are those of channelwise.runtime.gpu.tiles. All of a case take turns with F.linear and with the layer as
it chooses for itself, timed as in linears.py. A row is the best of a case: its time, × bf16, × own (its speed over
the layer's own choice), and its error against float64; a candidate that fails or is wrong is left out and told on
standard error. --all prints every candidate instead of the best.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Protocol

import torch
from cases import BASELINE, Figures, Product, Shape, bf16_product, measured, our_product, shapes_of, tokens_of, wrong
from devices import Device, device_of
from kinds import KINDS
from tables import Findings, chosen, parser_of

from channelwise.runtime.linear import QuantizedLinear

TILES_MODULE = "channelwise.runtime.gpu.tiles"
OWN = "own"
SHAPES, DRY_SHAPES = "4096x4096,28672x8192", "256x128"
TOKENS, DRY_TOKENS = "1,16,512,2048,8192", "1,32"
HEADINGS = ("kind ", "tokens", "outputs", "columns", "tiles ", "of", "µs", "quartiles", "× bf16", "× own", "error")

Forward = Callable[[torch.Tensor], torch.Tensor]


class Tunable(Protocol):
    """Where tile configurations come from, and how a layer is computed with one."""

    def candidates(self, layer: QuantizedLinear) -> Sequence[Any]:
        """The configurations that a layer can have; each says what it is as a string."""
        ...

    def bound(self, layer: QuantizedLinear, tiles: Any) -> Forward:
        """The layer computed with a configuration."""
        ...


class Kernels:
    """Our kernels: `candidates` of TILES_MODULE, and executions that take `tiles`."""

    def __init__(self) -> None:
        """Raises SystemExit where there are none."""
        try:
            self._module = import_module(TILES_MODULE)
        except ImportError as error:
            raise SystemExit(f"error: no tile configurations: {error}") from None

    def candidates(self, layer: QuantizedLinear) -> Sequence[Any]:
        """See `Tunable`."""
        execution: Any = layer._execution()
        found: Sequence[Any] = self._module.candidates(execution.kind)
        return found

    def bound(self, layer: QuantizedLinear, tiles: Any) -> Forward:
        """See `Tunable`."""
        execution: Any = layer._execution()
        bound: Forward = replace(execution, tiles=tiles)
        return bound


@dataclass(frozen=True)
class Alike:
    """For a dry run: configurations that change nothing."""

    count: int = 2

    def candidates(self, layer: QuantizedLinear) -> Sequence[Any]:
        """See `Tunable`."""
        return [f"number {index}" for index in range(self.count)]

    def bound(self, layer: QuantizedLinear, tiles: Any) -> Forward:
        """See `Tunable`."""
        return layer


def products_of(kind: str, shape: Shape, tunable: Tunable, device: Device) -> dict[str, Product]:
    """The layer as it chooses for itself, and with every configuration; all share their weights."""
    own = our_product(KINDS[kind], shape, device)
    layers = [layer for layer in own.copies if isinstance(layer, QuantizedLinear)]
    found = {OWN: own}
    for tiles in tunable.candidates(layers[0]):
        found[str(tiles)] = replace(own, copies=tuple(tunable.bound(layer, tiles) for layer in layers))
    return found


def right(found: dict[str, Figures], shape: Shape, tokens: int) -> dict[str, Figures]:
    """The configurations whose results are right, the fastest first; others are told on standard error."""
    kept: dict[str, Figures] = {}
    for name, figures in found.items():
        line = wrong(name, shape, tokens, figures)
        if line is not None:
            print(line, file=sys.stderr)
        elif name not in (BASELINE, OWN):
            kept[name] = figures
    return dict(sorted(kept.items(), key=lambda item: item[1].timing.median))


def add(kind: str, shape: Shape, tokens: int, found: dict[str, Figures], every: bool, findings: Findings) -> None:
    """The row of the best configuration, or the rows of all."""
    ranked = right(found, shape, tokens)
    for name, figures in list(ranked.items())[: None if every else 1]:
        seconds = figures.timing.median
        speeds = {other: found[other].timing.median / seconds for other in (BASELINE, OWN) if other in found}
        cells = (
            kind,
            str(tokens),
            str(shape.outputs),
            str(shape.columns),
            name,
            str(len(ranked)),
            f"{seconds * 1e6:,.1f}",
        )
        ratios = (f"{speeds[other]:.2f}" if other in speeds else "" for other in (BASELINE, OWN))
        entry = {"kind": kind, "tokens": tokens, "shape": [shape.outputs, shape.columns], "tiles": name}
        findings.add(
            (*cells, figures.timing.spread(), *ratios, f"{figures.error:.1g}"),
            {**entry, **figures.to_dict(), "speeds_over": speeds},
        )


def measure(asked: argparse.Namespace, device: Device, findings: Findings) -> None:
    """Kind by kind and shape by shape."""
    tunable: Tunable = Kernels() if device.name == "cuda" else Alike()
    for kind in chosen(KINDS, asked.kinds, "kind"):
        for shape in shapes_of(asked.shapes or (SHAPES if device.name == "cuda" else DRY_SHAPES), device):
            if not findings.budget.allows(f"{kind}, {shape}"):
                continue
            products = {BASELINE: bf16_product(shape, device), **products_of(kind, shape, tunable, device)}
            for tokens in tokens_of(asked.tokens, TOKENS, DRY_TOKENS, device):
                if findings.budget.allows(f"{kind}, {shape} at {tokens} tokens"):
                    found, _ = measured(products, shape.columns, tokens, device, asked)
                    add(kind, shape, tokens, found, asked.all, findings)


def main() -> None:
    """Prints one table."""
    parser = parser_of(__doc__, seconds=5.0, budget=400.0)
    parser.add_argument("--kinds", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--shapes", help=f"out x in, default {SHAPES}")
    parser.add_argument("--tokens", help=f"default {TOKENS}")
    parser.add_argument("--all", action="store_true", help="a row for every candidate")
    asked = parser.parse_args()
    torch.manual_seed(0)
    device = device_of(asked.device)
    findings = Findings(device.about(), asked, "The fastest tiles", HEADINGS)
    findings.told(lambda: measure(asked, device, findings))


if __name__ == "__main__":
    main()
