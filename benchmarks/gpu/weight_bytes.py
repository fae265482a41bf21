"""Bytes of weights of a Llama of the 7B shape, by recipe, as checkpoints store them: counted, without a GPU or a model.

    PYTHONPATH=src python benchmarks/gpu/weight_bytes.py

linear: the blocks' linear layers, with scales, zero points, biases and input vectors. all: with embedding, output layer
and norms, which stay in bfloat16. × bf16 are shares of the model in bfloat16. The aim: W8A8 at most 0.52.
"""

import argparse
import math
from dataclasses import dataclass

from kinds import Kind
from models import RECIPES, SIZES, Size
from rich import box
from rich.console import Console
from rich.table import Table

from channelwise.runtime.layout import buffer_layout

FLOATING_BYTES = 2
HEADINGS = ("recipe", "linear GB", "× bf16", "all GB", "× bf16")


@dataclass(frozen=True)
class Linear:
    """A linear layer of a block; inner: whether its input is no norm's output (o, down)."""

    outputs: int
    columns: int
    inner: bool = False


def linears_of(size: Size) -> tuple[Linear, ...]:
    """The seven linear layers of a block."""
    hidden, inner = size.hidden, size.inner
    attention = (*(Linear(hidden, hidden) for _ in range(3)), Linear(hidden, hidden, inner=True))
    return (*attention, Linear(inner, hidden), Linear(inner, hidden), Linear(hidden, inner, inner=True))


def layer_bytes(linear: Linear, kind: Kind) -> int:
    """All that a checkpoint stores of a layer."""
    layouts = filter(None, buffer_layout(kind.sized(linear.outputs, linear.columns)).values())
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in layouts)


def main() -> None:
    """Prints one table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    size = SIZES["7b"]
    linears = linears_of(size)
    floating = size.blocks * sum(linear.outputs * linear.columns * FLOATING_BYTES for linear in linears)
    others = (2 * size.vocabulary + 2 * size.blocks + 1) * size.hidden * FLOATING_BYTES
    table = Table(title="Weights of a Llama of the 7B shape", box=box.MARKDOWN)
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == HEADINGS[0] else "right")
    rows = {"bf16": floating}
    for name, recipe in RECIPES.items():
        kinds = (recipe.inner if linear.inner else recipe.stream for linear in linears)
        rows[name] = size.blocks * sum(map(layer_bytes, linears, kinds))
    for name, own in rows.items():
        shares = (own / floating, (own + others) / (floating + others))
        table.add_row(name, f"{own / 1e9:.3f}", f"{shares[0]:.4f}", f"{(own + others) / 1e9:.3f}", f"{shares[1]:.4f}")
    Console().print(table)


if __name__ == "__main__":
    main()
