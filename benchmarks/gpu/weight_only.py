"""Weights of 3 and 4 bits in groups of 128, inputs in bfloat16: bytes of weight per second, and ratios to bfloat16.

    PYTHONPATH=src python benchmarks/gpu/weight_only.py [--json FILE]
    PYTHONPATH=src python benchmarks/gpu/weight_only.py --shapes 28672x8192 --tokens 1,2,4 --kinds w4-oc,w4-ic
    PYTHONPATH=src python benchmarks/gpu/weight_only.py --device cpu          (a dry run)

oc and ic are groups along rows and down columns (per output and per input channel), with zero points. In every round
each kind, F.linear and the fastest reader of bandwidth.py have their turn, in an order drawn anew: replays of a CUDA
graph of several calls, each on another copy of the weight and another input, so many copies that no cache serves them.
Times are those of one call, medians with quartiles; GB/s are bytes of the weight as stored, scales and zero points
included, per time; `of read` is their share of what the reader reads in the same rounds. × bf16 is the speed over
F.linear, × oc that of per-IC over per-OC of the same width. Before that the outputs are filled with NaN, computed by
the same graph and compared with float64: `error` is relative. `how` says whether calls could be captured.

The aims: one token at 75 % of the read bandwidth; 3 and 3.8 × bf16 with 4 and 3 bits at 28672x8192; per-IC within 10 %
of per-OC. A cell that has an aim ends in ✓ or ✗.
"""

import argparse

import torch
from bandwidth import Stream, fastest_reader
from cases import (
    BASELINE,
    Figures,
    Product,
    Shape,
    bf16_product,
    how,
    measured,
    our_product,
    shapes_of,
    tokens_of,
    wrong,
)
from devices import Device, device_of
from kinds import WEIGHTS_ONLY
from tables import Findings, chosen, parser_of

TOKENS, DRY_TOKENS = "1,2,4,8,16,64,512", "1,8,64"
HEADINGS = ("shape ", "tokens", "kind ", "µs", "quartiles", "GB/s", "of read", "× bf16", "× oc", "error", "how ")
READ = "read"

READ_SHARE = 0.75
SPEEDS = {"w4": 3.0, "w3": 3.8}
AIMED_SHAPE = Shape(28672, 8192)
PER_IC_SPEED = 1 / 1.1
"""Of per-IC over per-OC, at least."""


def aims_of(name: str, shape: Shape, tokens: int) -> dict[str, float]:
    """What the shares and ratios of a row are meant to be at least."""
    aims: dict[str, float] = {}
    if name == BASELINE:
        return aims
    if tokens == 1:
        aims["share_of_read"] = READ_SHARE
        if shape == AIMED_SHAPE:
            aims["speed_over_bf16"] = SPEEDS[name.partition("-")[0]]
    if name.endswith("-ic"):
        aims["speed_over_oc"] = PER_IC_SPEED
    return aims


def ratios_of(name: str, found: dict[str, Figures], read: float) -> dict[str, float]:
    """The shares and ratios of a row; read: bytes per second."""
    own, per_oc = found[name], found.get(name.replace("-ic", "-oc"))
    speed = own.weight_bytes / own.timing.median
    ratios = {
        "gb_s": speed / 1e9,
        "share_of_read": speed / read,
        "speed_over_bf16": found[BASELINE].timing.median / own.timing.median,
    }
    if name.endswith("-ic") and per_oc is not None:
        ratios["speed_over_oc"] = per_oc.timing.median / own.timing.median
    return ratios


def add(found: dict[str, Figures], shape: Shape, tokens: int, read: float, findings: Findings) -> None:
    """The rows of one case; read: bytes per second."""
    for name, figures in found.items():
        ratios, aims = ratios_of(name, found, read), aims_of(name, shape, tokens)
        cells = [str(shape), str(tokens), name, f"{figures.timing.median * 1e6:,.1f}", figures.timing.spread()]
        cells.append(f"{ratios['gb_s']:,.0f}")
        for key, form in (("share_of_read", ".0%"), ("speed_over_bf16", ".2f"), ("speed_over_oc", ".2f")):
            cells.append(_cell(ratios.get(key), aims.get(key), form))
        entry = {"shape": [shape.outputs, shape.columns], "tokens": tokens, "kind": name, **figures.to_dict()}
        findings.add([*cells, f"{figures.error:.1g}", how(figures)], {**entry, **ratios, "read_gb_s": read / 1e9})
        line = wrong(name, shape, tokens, figures)
        if line is not None:
            findings.fault(line)


def _cell(value: float | None, aim: float | None, form: str) -> str:
    if value is None:
        return ""
    mark = "" if aim is None else " ✓" if value >= aim else " ✗"
    return f"{value:{form}}{mark}"


def measure(asked: argparse.Namespace, device: Device, findings: Findings) -> None:
    """Shape by shape."""
    kinds, reader = chosen(WEIGHTS_ONLY, asked.kinds, "kind"), fastest_reader(device)
    findings.notes.append(f"read: {reader.name}")
    for shape in shapes_of(asked.shapes, device):
        if not findings.budget.allows(str(shape)):
            continue
        products: dict[str, Product] = {BASELINE: bf16_product(shape, device)}
        products |= {name: our_product(WEIGHTS_ONLY[name], shape, device) for name in kinds}
        for tokens in tokens_of(asked.tokens, TOKENS, DRY_TOKENS, device):
            if findings.budget.allows(f"{shape} at {tokens} tokens"):
                _case(products, shape, tokens, reader, asked, device, findings)


def _case(
    products: dict[str, Product],
    shape: Shape,
    tokens: int,
    reader: Stream,
    asked: argparse.Namespace,
    device: Device,
    findings: Findings,
) -> None:
    found, beside = measured(products, shape.columns, tokens, device, asked, {READ: reader.turn})
    add(found, shape, tokens, reader.bytes / beside[READ].median, findings)


def main() -> None:
    """Prints one table."""
    parser = parser_of(__doc__, seconds=1.0)
    parser.add_argument("--shapes", help="out x in, such as 4096x4096,28672x8192")
    parser.add_argument("--tokens", help=f"default {TOKENS}")
    parser.add_argument("--kinds", help=f"of {', '.join(WEIGHTS_ONLY)}")
    asked = parser.parse_args()
    torch.manual_seed(0)
    device = device_of(asked.device)
    findings = Findings(device.about(), asked, "Weights only, in groups of 128", HEADINGS)
    findings.told(lambda: measure(asked, device, findings))


if __name__ == "__main__":
    main()
