"""16-bit products as torch computes them, beside the same in float32 (`channelwise.runtime.widening`).

    python benchmarks/cpu/widening.py [--rows 1,8,16,64,512] [--channels 2048] [--rounds 15] [--threads 2]

A linear layer of C inputs and C outputs, and causal attention of as many tokens with heads of 64 channels, in bfloat16
and float16: medians of interleaved rounds, in ms. Where the processor has instructions for a dtype, quantizing and
evaluating take torch's own product. Both are shown all the same, and which of them is taken here.
"""

import argparse
from functools import partial

import torch
from rich.table import Table
from timing import Timing, head_line, interleaved, machine, wide_console
from torch.nn.functional import linear, scaled_dot_product_attention

from channelwise.runtime.widening import ROWS, without_instructions

HEAD = 64


def timings(rows: int, channels: int, dtype: torch.dtype, rounds: int) -> dict[str, Timing]:
    """By kind of product, in its own dtype and, as "... wide", in float32 with the conversions there and back."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, channels, generator=generator).to(dtype)
    weight = (torch.randn(channels, channels, generator=generator) / channels**0.5).to(dtype)
    heads = x.view(1, rows, channels // HEAD, HEAD).transpose(1, 2)
    attention = partial(scaled_dot_product_attention, is_causal=True)
    calls = {
        "linear": lambda _: linear(x, weight),
        "linear wide": lambda _: linear(x.float(), weight.float()).to(dtype),
        "attention": lambda _: attention(heads, heads, heads),
        "attention wide": lambda _: attention(heads.float(), heads.float(), heads.float()).to(dtype),
    }
    return interleaved(calls, rounds, seconds=30)


def main() -> None:
    """Measures and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1,8,16,64,512")
    parser.add_argument("--channels", type=int, default=2048, help="a multiple of 64")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    console = wide_console()
    console.print(head_line(machine()))
    table = Table(title=f"{asked.channels} channels, ms")
    for heading in ("rows", "dtype", "linear", "in float32", "×", "attention", "in float32", "×", "linear taken"):
        table.add_column(heading, justify="left" if heading in ("dtype", "linear taken") else "right")
    for dtype in (torch.bfloat16, torch.float16):
        for rows in map(int, asked.rows.split(",")):
            found = timings(rows, asked.channels, dtype, asked.rounds)
            cells = []
            for kind in ("linear", "attention"):
                own, wide = found[kind].median, found[f"{kind} wide"].median
                cells += [f"{own * 1e3:.2f}", f"{wide * 1e3:.2f}", f"{own / wide:.1f}"]
            taken = "float32" if dtype in without_instructions() and rows >= ROWS else "torch's own"
            table.add_row(str(rows), str(dtype).removeprefix("torch."), *cells, taken)
    console.print(table)


if __name__ == "__main__":
    main()
