"""How fast this machine does each kind of work that `costs.py` counts, by the package's own functions.

    python benchmarks/scale/rates.py --threads 2 --json rates.json
    python benchmarks/scale/rates.py --channels 8192 --device cuda --json rates-gpu.json

Every kind is measured on one layer of --channels inputs and outputs, 2,048 tokens at a time, as the engine does; the
median of --rounds, kinds in turn. The disk is that of --work: a file of 1 GiB, synchronized when written and not in
the page cache when read.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from costs import PROBED
from limits import forget_cached
from rich import box
from rich.console import Console
from rich.table import Table
from torch.nn.functional import linear, scaled_dot_product_attention

from channelwise.engine.statistics import StatisticsBuilder
from channelwise.methods.gptq import Gptq, factor, gptq_
from channelwise.methods.hessian import HessianBuilder, output_error
from channelwise.numerics.granularity import Granularity
from channelwise.numerics.grids import IntegerGrid
from channelwise.numerics.quantizer import fake_quantize, parameters_of

TOKENS = 2048
HEAD = 128
"""Channels of an attention head."""

NARROW = 256
"""Columns that GPTQ's steps are timed on: few, so that there is hardly a product beside them."""

FILE = 2**30
PIECE = 2**24


@dataclass(frozen=True)
class Kind:
    """One kind of work. amount: what one call does, in `unit`."""

    unit: str
    amount: float
    call: Callable[[], object]


def kinds(channels: int, length: int, device: torch.device) -> dict[str, Kind]:
    """The kinds of computing."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TOKENS, channels, generator=generator).to(device)
    weight = (torch.randn(channels, channels, generator=generator) / channels**0.5).to(device)
    half_x, half_weight = x.bfloat16(), weight.bfloat16()
    heads = half_x.view(TOKENS // length, length, channels // HEAD, HEAD).transpose(1, 2)
    builder = HessianBuilder(channels, device)
    for _ in range(-(-channels // TOKENS)):
        builder.update(x)
    hessian, options = builder.finish(), Gptq()
    grid, groups = IntegerGrid(3, symmetric=False), Granularity("row_group", HEAD)
    parameters = parameters_of(weight, grid, groups)
    narrow = weight[:, :NARROW].contiguous()
    narrow_factor = factor(hessian.matrix[:NARROW, :NARROW].clone(), options, "random")
    few = x[:PROBED].double()
    square, entries = channels**2, TOKENS * channels
    return {
        "product": Kind("FLOP", 2 * TOKENS * square, lambda: linear(half_x, half_weight)),
        "single": Kind("FLOP", 2 * TOKENS * square, lambda: linear(x, weight)),
        "attention": Kind(
            "FLOP", 4 * entries * length, lambda: scaled_dot_product_attention(heads, heads, heads, is_causal=True)
        ),
        "extremes": Kind("numbers", entries, lambda: StatisticsBuilder(channels).update(half_x[None])),
        "hessian": Kind("FLOP", TOKENS * square, lambda: builder.update(half_x)),
        "factor": Kind("FLOP", channels**3 / 3, lambda: factor(hessian.matrix, options, "random")),
        "steps": Kind(
            "weights", channels * NARROW, lambda: gptq_(narrow.clone(), narrow_factor, grid, groups, options)
        ),
        "error": Kind("FLOP", square * channels, lambda: output_error(hessian, weight)),
        "double": Kind("FLOP", 2 * PROBED * square, lambda: linear(few, weight.double())),
        "quantize": Kind("weights", square, lambda: fake_quantize(weight, parameters, grid, groups)),
    }


def disk_kinds(folder: Path) -> dict[str, Kind]:
    """Writing and reading a file; it has to be written once before."""
    path = folder / "file"

    def write() -> None:
        piece = os.urandom(PIECE)
        with path.open("wb") as file:
            for _ in range(FILE // PIECE):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())

    def read() -> None:
        with path.open("rb", buffering=0) as file:
            buffer = bytearray(PIECE)
            while file.readinto(buffer):
                pass

    return {"disk write": Kind("B", FILE, write), "disk read": Kind("B", FILE, read)}


@torch.no_grad()
def measured(found: dict[str, Kind], rounds: int, device: torch.device, folder: Path) -> dict[str, float]:
    """Units per second by kind, the median of the rounds after an untimed one."""
    times: dict[str, list[float]] = {name: [] for name in found}
    for number in range(rounds + 1):
        for name, kind in found.items():
            print(f"round {number}: {name}", file=sys.stderr)
            if name == "disk read":
                forget_cached(folder)
            begun = time.perf_counter()
            kind.call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number:
                times[name].append(time.perf_counter() - begun)
    return {name: kind.amount / statistics.median(times[name]) for name, kind in found.items()}


def main() -> None:
    """Measures and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=4096)
    parser.add_argument("--length", type=int, default=512, help="tokens of a sample, for the attention")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()), help="whose disk is measured")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    device = torch.device(asked.device)
    with tempfile.TemporaryDirectory(dir=asked.work) as folder:
        all_kinds = kinds(asked.channels, asked.length, device) | disk_kinds(Path(folder))
        rates = measured(all_kinds, asked.rounds, device, Path(folder))
    title = f"{asked.channels} channels, {device}, {asked.threads} threads, medians of {asked.rounds} rounds"
    table = Table(title=title, box=box.MARKDOWN)
    table.add_column("kind")
    table.add_column("per second", justify="right")
    for name, rate in rates.items():
        table.add_row(name, f"{rate / 1e9:,.2f} G{all_kinds[name].unit}")
    Console(width=100).print(table)
    if asked.json is not None:
        about = {"channels": asked.channels, "threads": asked.threads, "device": asked.device}
        asked.json.write_text(json.dumps({"about": about, "rates": rates}, indent=1) + "\n")


if __name__ == "__main__":
    main()
