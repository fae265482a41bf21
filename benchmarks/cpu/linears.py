"""One linear layer at a time: ours beside torch's, microseconds per call, bytes, and the share of memory bandwidth.

    python benchmarks/cpu/linears.py [--threads 2] [--rounds 30] [--rows 1,16] [--shapes 4096x4096] [--json FILE]
    python benchmarks/cpu/linears.py --only w4-oc,w3-oc --rows 1
    python benchmarks/cpu/linears.py --quick

Ours is `QuantizedLinear.forward` on bfloat16 inputs, input quantization included, with random codes (`layers.py`):
wXaY with quantized inputs, wX-oc and wX-ic weights only, in groups of 128 per output or input channel. torch's
operators (`operators.py`): bf16 and fp32 are F.linear, qlinear and int_mm have their codes given, qlinear-eager
quantizes in eager torch. bf16 F.linear and prepacked bf16 always run. A shape is out_features x in_features.

In every round each candidate has its turn, in an order drawn anew: --burst calls, one after another as in a model, each
on another copy of its layer. A turn's time is that of one of its calls; figures are medians over the rounds, with
quartiles. × bf16 and × packed are speed over bf16 F.linear and over oneDNN's product with a prepacked bf16 weight.

Weights come from memory, not from a cache: every candidate has so many copies of its layer, used in turn, that between
two uses of a copy all candidates together have gone through --rotate MB of weights (default 2000; processors that are
shared have hundreds of MB of L3 cache). That holds for all numbers of rows, as it does in a model; --rotate 0 keeps one
copy of each. The bandwidth is what the fastest of several readers (`bandwidth.py`) gives in the same rounds; GB/s are
bytes of the weight in memory, scales and zero points included, per time.

Any other job on the machine, niced or not, spoils the figures: look at the load in the head line and the quartiles.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bandwidth import Bandwidth
from layers import SCHEMES, held_bytes, random_layer, twin
from operators import BASELINE, MAKERS, PREPACKED, Inputs, Layer
from rich.table import Table
from timing import Timing, chosen, head_line, interleaved, machine, wide_console

Shape = tuple[int, int]

SHAPES = "4096x4096,4096x11008,11008x4096"
QUICK_SHAPES = "1024x1024"
FIRST_COLUMN = "candidate"


def copies_needed(layers: list[Layer], rotate: int) -> int:
    """How many copies of each make `rotate` bytes of weights lie between two uses of one."""
    return max(1, -(-rotate // sum(layer.bytes for layer in layers)))


class Candidates:
    """The layers of all candidates for one shape; ours are made once, torch's for every number of rows."""

    def __init__(self, names: list[str], shape: Shape, rotate: int, burst: int) -> None:
        self._names, self._shape, self._rotate, self._burst = names, shape, rotate, burst
        self._ours: dict[str, list[Layer]] = {name: [] for name in names if name in SCHEMES}
        self._first = {name: random_layer(SCHEMES[name], *shape) for name in self._ours}

    def layers(self, rows: int) -> dict[str, list[Layer]]:
        """Equally many copies of every candidate."""
        found: dict[str, list[Layer]] = {}
        for name in self._names:
            found[name] = self._ours[name] if name in SCHEMES else []
            self._fill(found[name], name, 1, rows)
        # No copy twice in a turn.
        copies = max(self._burst, copies_needed([each[0] for each in found.values()], self._rotate))
        for name, each in found.items():
            self._fill(each, name, copies, rows)
        return found

    def _fill(self, layers: list[Layer], name: str, copies: int, rows: int) -> None:
        while len(layers) < copies:
            layers.append(self._our_layer(name) if name in SCHEMES else MAKERS[name](*self._shape, rows))

    def _our_layer(self, name: str) -> Layer:
        layer = twin(self._first[name])
        return Layer(lambda x: layer(x.bf16), held_bytes(layer))


def _turn(layers: list[Layer], x: Inputs, burst: int) -> Callable[[int], object]:
    """The calls of one round: each on the copy after the last one."""

    def turn(number: int) -> None:
        for each in range(number * burst, (number + 1) * burst):
            layers[each % len(layers)].call(x)

    return turn


@torch.no_grad()
def measured(candidates: Candidates, shape: Shape, rows: int, asked: argparse.Namespace) -> dict[str, Any]:
    """One case: the times of all candidates and the bandwidth beside them."""
    layers, x = candidates.layers(rows), Inputs.random(rows, shape[1])
    bandwidth = asked.bandwidth
    bandwidth.clear()
    # A first call prepares the layer: every copy has one.
    for each in layers.values():
        for layer in each:
            layer.call(x)
    turns = {name: _turn(each, x, asked.burst) for name, each in layers.items()}
    copies = len(next(iter(layers.values())))
    found = interleaved(turns, asked.rounds, asked.seconds, beside=bandwidth.round)
    times = {name: Timing(tuple(seconds / asked.burst for seconds in time.seconds)) for name, time in found.items()}
    reader, readings = bandwidth.best()
    return {
        "shape": list(shape),
        "rows": rows,
        "copies": copies,
        "read_gb_s": statistics.median(readings),
        "read_range_gb_s": [min(readings), max(readings)],
        "reader": reader,
        "candidates": {
            name: _figures(times, name, layers[name][0].bytes, statistics.median(readings), shape, rows)
            for name in times
        },
    }


def _figures(times: dict[str, Timing], name: str, size: int, read: float, shape: Shape, rows: int) -> dict[str, Any]:
    time = times[name]
    speed = size / time.median / 1e9
    return {
        **time.to_dict(),
        "quartiles_text": time.spread(),
        "speed_over_bf16": times[BASELINE].median / time.median,
        "speed_over_prepacked": times[PREPACKED].median / time.median,
        "weight_bytes": size,
        "gb_s": speed,
        "share_of_read": speed / read,
        "gop_s": 2e-9 * rows * shape[0] * shape[1] / time.median,
    }


def table_of(case: dict[str, Any]) -> Table:
    """One case as a table."""
    shape, low, high = case["shape"], *case["read_range_gb_s"]
    title = f"{case['rows']} rows, ({shape[0]}, {shape[1]}); {case['copies']} copies; "
    title += f"memory read {case['read_gb_s']:.1f} GB/s ({low:.1f}–{high:.1f}, {case['reader']})"
    table = Table(title=title)
    headings = ("µs", "quartiles", "× bf16", "× packed", "GB/s", "% of read", "GOP/s", "MB", "rounds")
    table.add_column(FIRST_COLUMN, no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, found in case["candidates"].items():
        table.add_row(
            name,
            f"{found['median_us']:,.0f}",
            found["quartiles_text"],
            f"{found['speed_over_bf16']:.2f}",
            f"{found['speed_over_prepacked']:.2f}",
            f"{found['gb_s']:.1f}",
            f"{100 * found['share_of_read']:.0f}",
            f"{found['gop_s']:,.0f}",
            f"{found['weight_bytes'] / 1e6:.1f}",
            str(found["rounds"]),
        )
    return table


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", help=f"out x in, default {SHAPES}")
    parser.add_argument("--rows", help="default 1,16,128,512")
    parser.add_argument("--only", help=f"of {', '.join([*MAKERS, *SCHEMES])}")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--burst", type=int, default=4, help="calls of a candidate, one after another, that are timed")
    parser.add_argument("--seconds", type=float, default=120.0, help="of one case, after which no round begins")
    parser.add_argument("--rotate", type=int, default=2000, help="MB of weights between two uses of one")
    parser.add_argument("--quick", action="store_true", help="a small shape and five rounds: does it run?")
    parser.add_argument("--json", type=Path, help="write all figures there, every round's among them")
    asked = parser.parse_args()
    asked.shapes = asked.shapes or (QUICK_SHAPES if asked.quick else SHAPES)
    asked.rows = asked.rows or ("1,128" if asked.quick else "1,16,128,512")
    if asked.quick:
        asked.rounds, asked.rotate = min(asked.rounds, 5), min(asked.rotate, 200)
    return asked


def main() -> None:
    """Measures shape by shape and prints a table for every number of rows."""
    asked = parsed()
    torch.set_num_threads(asked.threads)
    console, about = wide_console(), machine()
    console.print(head_line(about))
    wanted = None if asked.only is None else f"{asked.only},{BASELINE},{PREPACKED}"
    names = chosen([*MAKERS, *SCHEMES], wanted, "candidate")
    asked.bandwidth, cases = Bandwidth(), []
    for shape in (tuple(int(side) for side in text.split("x")) for text in asked.shapes.split(",")):
        candidates = Candidates(names, shape, asked.rotate * 10**6, asked.burst)
        for rows in (int(number) for number in asked.rows.split(",")):
            cases.append(measured(candidates, shape, rows, asked))
            console.print(table_of(cases[-1]))
            if asked.json is not None:
                options = {key: str(value) for key, value in vars(asked).items() if key != "bandwidth"}
                asked.json.write_text(json.dumps({"machine": about, "asked": options, "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
