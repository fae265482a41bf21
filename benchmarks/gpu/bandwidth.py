"""How fast memory is read and copied: several readers over a large buffer, of which the fastest counts."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from devices import Device
from timing import Call, Turn

GPU_BYTES, DRY_BYTES = 4 * 2**30, 2**20
"""Of the buffer: many times the last cache."""

QUICK_ROUNDS = 5


@dataclass(frozen=True)
class Stream:
    """A pass over the buffer; bytes: read and written."""

    name: str
    turn: Turn
    bytes: int


@torch.no_grad()
def readers(device: Device) -> list[Stream]:
    """Reductions of one buffer of random numbers."""
    source = torch.randn(_size(device) // 4, device=device.name)
    calls: dict[str, Call] = {
        "sum of float32": source.sum,
        "maximum of float32": source.amax,
        "sum of float32 by rows": lambda: source.view(-1, 2**14).sum(dim=1),
    }
    ours = _triton_reader() if device.name == "cuda" else None
    if ours is not None:
        calls["Triton sums"] = lambda: ours(source)
    return [Stream(name, device.turn([call]), source.nbytes) for name, call in calls.items()]


@torch.no_grad()
def copier(device: Device) -> Stream:
    """A copy from one half of a buffer to the other."""
    source = torch.randn(_size(device) // 8, device=device.name)
    target = torch.empty_like(source)
    return Stream("copy", device.turn([lambda: target.copy_(source)]), 2 * source.nbytes)


def fastest_reader(device: Device) -> Stream:
    """The reader that takes the least time."""
    every = readers(device)
    times = device.times({stream.name: stream.turn for stream in every}, QUICK_ROUNDS, float("inf"))
    return min(every, key=lambda stream: times[stream.name].median)


def _size(device: Device) -> int:
    return GPU_BYTES if device.name == "cuda" else DRY_BYTES


def _triton_reader() -> Callable[[torch.Tensor], torch.Tensor] | None:
    try:
        from reading import sums_of_stretches
    except ImportError as error:
        print(f"no reader in Triton: {error}", file=sys.stderr)
        return None
    return sums_of_stretches
