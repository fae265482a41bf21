"""What the device can do: bytes read and copied per second, products in bfloat16 and int8.

    PYTHONPATH=src python benchmarks/gpu/ceilings.py [--json FILE]
    PYTHONPATH=src python benchmarks/gpu/ceilings.py --device cpu          (a dry run)

Reading is a reduction of 4 GiB of random float32, by torch and by a kernel of this folder; copying counts bytes read
and written. Products are square, of --size (8192) rows and columns of random numbers, torch's matmul and _int_mm. All
take turns, in an order drawn anew in every round; figures are medians with quartiles over the rounds.
"""

import argparse
from dataclasses import dataclass
from functools import partial

import torch
from bandwidth import copier, readers
from devices import Device, device_of
from tables import Findings, parser_of
from timing import Timing, Turn

HEADINGS = ("what ", "figure", "quartiles", "unit ", "µs")
SIZE, DRY_SIZE = 8192, 128
MATRICES = 4
"""Used in turn."""


@dataclass(frozen=True)
class Ceiling:
    """work: bytes or operations of one call, in 10⁹ or 10¹² of which the unit counts them."""

    turn: Turn
    work: float
    unit: str
    unit_size: float


@torch.no_grad()
def ceilings(device: Device, size: int) -> dict[str, Ceiling]:
    """By name."""
    found = {f"read, {stream.name}": Ceiling(stream.turn, stream.bytes, "GB/s", 1e9) for stream in readers(device)}
    copy, operations = copier(device), 2.0 * size**3
    found["copy, read + write"] = Ceiling(copy.turn, copy.bytes, "GB/s", 1e9)
    found["bf16 matmul"] = Ceiling(_matmul(device, size), operations, "TFLOP/s", 1e12)
    found["int8 _int_mm"] = Ceiling(_int8_matmul(device, size), operations, "TOP/s", 1e12)
    return found


def _matmul(device: Device, size: int) -> Turn:
    matrices = [torch.randn(size, size, device=device.name).to(torch.bfloat16) for _ in range(MATRICES)]
    return device.turn([partial(torch.matmul, one, other.t()) for one, other in _pairs(matrices)])


def _int8_matmul(device: Device, size: int) -> Turn:
    shape = (size, size)
    matrices = [torch.randint(-127, 128, shape, dtype=torch.int8, device=device.name) for _ in range(MATRICES)]
    return device.turn([partial(torch._int_mm, one, other.t()) for one, other in _pairs(matrices)])


def _pairs(matrices: list[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(matrices, [*matrices[1:], matrices[0]], strict=True))


def add(name: str, ceiling: Ceiling, timing: Timing, findings: Findings) -> None:
    """One row."""
    figure = ceiling.work / timing.median / ceiling.unit_size
    low, high = (ceiling.work / seconds / ceiling.unit_size for seconds in reversed(timing.quartiles))
    cells = (name, f"{figure:,.1f}", f"{low:,.1f}–{high:,.1f}", ceiling.unit, f"{timing.median * 1e6:,.1f}")
    findings.add(cells, {"what": name, "figure": figure, "unit": ceiling.unit, **timing.to_dict()})


def measure(asked: argparse.Namespace, device: Device, findings: Findings) -> None:
    """All of them in turn."""
    found = ceilings(device, asked.size or (SIZE if device.name == "cuda" else DRY_SIZE))
    times = device.times({name: ceiling.turn for name, ceiling in found.items()}, asked.rounds, asked.seconds)
    for name, ceiling in found.items():
        add(name, ceiling, times[name], findings)


def main() -> None:
    """Prints one table."""
    parser = parser_of(__doc__, seconds=30.0)
    parser.add_argument("--size", type=int, help=f"rows and columns of the products, default {SIZE}")
    asked = parser.parse_args()
    torch.manual_seed(0)
    device = device_of(asked.device)
    findings = Findings(device.about(), asked, "What the device can do", HEADINGS)
    findings.told(lambda: measure(asked, device, findings))


if __name__ == "__main__":
    main()
