"""Quantization time in units of one floating-point forward pass over the same calibration set, and peak memory.

    python benchmarks/quantization_time.py MODEL --data TEXT --recipes outliertune-w8a8,os-plus-w6a6

Forward passes and quantization runs alternate, and the medians of both are compared, as machines are noisy. Peak memory
is what the process had at most during a quantization run over what it had before (Linux only), the copy of the model
that is quantized included; the model's own size stands beside it. "solving" is GPTQ's part, cubic in the width of
a layer, and does not grow with the calibration set: the factors of the Hessians and the rounding of the columns.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table

from channelwise.engine import rounding
from channelwise.engine.walk import quantize_model
from channelwise.evaluation.sizes import model_sizes
from channelwise.model.batches import accepted, calibration_batches, length_limit, window_length
from channelwise.model.loading import load_model
from channelwise.model.texts import read_texts
from channelwise.recipe import load_recipe

WIDTH = 130
"""Characters of the table, at least."""


@torch.no_grad()
def forward_seconds(model: torch.nn.Module, batches: list[dict[str, torch.Tensor]]) -> float:
    """Wall time of one pass over all batches."""
    started = time.perf_counter()
    for batch in batches:
        model(**batch)
    return time.perf_counter() - started


class PeakMemory:
    """The most memory that this process has held since the last `reset`, by what Linux counts."""

    _status = Path("/proc/self/status")
    _reset = Path("/proc/self/clear_refs")

    def reset(self) -> int:
        """Begins anew; the bytes held now."""
        if not self._reset.exists():
            return 0
        self._reset.write_text("5")
        return self._bytes("VmRSS")

    def bytes(self) -> int:
        """The most bytes held since."""
        return self._bytes("VmHWM") if self._reset.exists() else 0

    def _bytes(self, entry: str) -> int:
        line = next(line for line in self._status.read_text().splitlines() if line.startswith(entry))
        return 1024 * int(line.split()[1])


@contextmanager
def timed_solving() -> Iterator[list[float]]:
    """Gathers the wall times of GPTQ's factors and roundings."""
    seconds: list[float] = []

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            started = time.perf_counter()
            result = function(*arguments)
            seconds.append(time.perf_counter() - started)
            return result

        return run

    with (
        patch.object(rounding, "factor", timed(rounding.factor)),
        patch.object(rounding, "gptq_", timed(rounding.gptq_)),
    ):
        yield seconds


def main() -> None:
    """Measures every recipe and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--recipes", default="outliertune-w8a8,os-plus-w8a8,os-plus-all-w6a6")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    model, tokenizer = load_model(arguments.model)
    texts = read_texts(arguments.data)
    table = Table(title=f"{arguments.model}, {torch.get_num_threads()} threads, medians of {arguments.runs} runs")
    size = model_sizes(model).model_bytes
    for heading in (
        "recipe",
        "tokens",
        "forward s",
        "quantize s",
        "solving s",
        "× forward",
        "without solving",
        "peak MB",
        "model MB",
    ):
        table.add_column(heading, justify="left" if heading == "recipe" else "right", no_wrap=True)
    for name in arguments.recipes.split(","):
        recipe = load_recipe(name)
        window = window_length(None, recipe.calibration.length, length_limit(model, tokenizer))
        batches = [
            accepted(model, batch)
            for batch in calibration_batches(
                texts, tokenizer, model, samples=recipe.calibration.samples, length=window, seed=0
            )
        ]
        tokens = sum(batch["input_ids"].numel() for batch in batches)
        forward_seconds(model, batches[:1])
        forwards, walks, solving, peaks = [], [], [], []
        memory = PeakMemory()
        for _ in range(arguments.runs):
            forwards.append(forward_seconds(model, batches))
            before = memory.reset()
            with timed_solving() as solved:
                walks.append(quantize_model(copy.deepcopy(model), batches, recipe.to_plan()).seconds)
            solving.append(sum(solved))
            peaks.append(memory.bytes() - before)
        forward, walk, solve = (statistics.median(times) for times in (forwards, walks, solving))
        peak = f"{statistics.median(peaks) / 1e6:.0f}"
        ratios = f"{walk / forward:.1f}", f"{(walk - solve) / forward:.1f}"
        seconds = f"{forward:.2f}", f"{walk:.2f}", f"{solve:.2f}"
        table.add_row(name, f"{tokens:,}", *seconds, *ratios, peak, f"{size / 1e6:.0f}")
    # Output to a file is not cut.
    Console(width=max(WIDTH, Console().width)).print(table)


if __name__ == "__main__":
    main()
