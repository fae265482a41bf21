"""What one candidate of a search costs at a layer, computed in integers and in float32 (`channelwise.runtime.trial`).

    python benchmarks/cpu/candidates.py [--shapes 256x256,1024x256,4096x4096] [--tokens 4096] [--rounds 9] [--threads 2]

The weight transformed, rounded and multiplied with quantized inputs (8 bits, static, one scale): medians of interleaved
rounds, in ms. Shapes are OUTPUTSxCHANNELS.
"""

import argparse
from unittest.mock import patch

import torch
from rich.table import Table
from timing import Timing, head_line, interleaved, machine, wide_console

from channelwise.engine.layer_outputs import LayerOutputs
from channelwise.engine.plan import InputPlan, WeightPlan
from channelwise.methods.site import Candidate, ChannelStatistics
from channelwise.numerics.granularity import ROW
from channelwise.numerics.grids import IntegerGrid
from channelwise.numerics.transform import ChannelTransform


@torch.no_grad()
def timings(outputs: int, channels: int, tokens: int, rounds: int) -> dict[str, Timing]:
    """By way of computing it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, channels, generator=generator)
    linear = torch.nn.Linear(channels, outputs)
    grid = (IntegerGrid(8),)
    statistics = ChannelStatistics(x.amin(dim=0), x.amax(dim=0), torch.zeros(channels), tokens)
    layers = LayerOutputs((linear,), statistics, WeightPlan(grid, ROW), InputPlan(grid, "static"), own_dtype=False)
    candidate = Candidate(ChannelTransform(x.mean(dim=0), torch.linspace(1, 4, channels)))

    def in_float32(_: int) -> object:
        with patch("channelwise.engine.layer_outputs.trial_execution", return_value=None):
            return layers.tried(candidate, [x])

    return interleaved({"integers": lambda _: layers.tried(candidate, [x]), "float32": in_float32}, rounds, seconds=60)


def main() -> None:
    """Measures and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="256x256,1024x256,4096x4096")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    console = wide_console()
    console.print(head_line(machine()))
    table = Table(title=f"{asked.tokens} tokens, ms")
    for heading in ("outputs", "channels", "float32", "integers", "×"):
        table.add_column(heading, justify="right")
    for shape in asked.shapes.split(","):
        outputs, channels = map(int, shape.split("x"))
        found = timings(outputs, channels, asked.tokens, asked.rounds)
        wide, whole = found["float32"].median, found["integers"].median
        table.add_row(str(outputs), str(channels), f"{wide * 1e3:.2f}", f"{whole * 1e3:.2f}", f"{wide / whole:.1f}")
    console.print(table)


if __name__ == "__main__":
    main()
