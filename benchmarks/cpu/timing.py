"""Interleaved timing: in every round one call of each candidate, in an order drawn anew; and what machine it was."""

import os
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from channelwise.runtime.cpu import library

LEAST_ROUNDS = 5

Call = Callable[[int], object]
"""One call of a candidate, told the number of the round."""


@dataclass(frozen=True)
class Timing:
    """Seconds of every round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median, in seconds."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and third, in seconds."""
        if len(self.seconds) < 2:
            return self.seconds[0], self.seconds[0]
        first, _, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return first, third

    def spread(self, unit: float = 1e6) -> str:
        """Quartiles in units per second (microseconds by default), as `first–third`."""
        return "–".join(f"{value * unit:,.0f}" for value in self.quartiles)

    def to_dict(self) -> dict[str, Any]:
        """Median, quartiles, range and every round, in microseconds."""
        every = [round(value * 1e6, 2) for value in self.seconds]
        first, third = self.quartiles
        return {
            "median_us": self.median * 1e6,
            "quartiles_us": [first * 1e6, third * 1e6],
            "range_us": [min(every), max(every)],
            "rounds": len(every),
            "microseconds": every,
        }


def interleaved(
    calls: Mapping[str, Call],
    rounds: int,
    seconds: float = float("inf"),
    beside: Callable[[], None] | None = None,
    warm: int = 1,
) -> dict[str, Timing]:
    """The times of all candidates over `rounds` rounds after `warm` untimed ones.

    After `seconds`, and LEAST_ROUNDS rounds, no round begins any more. beside: called once per round, untimed.
    """
    found: dict[str, list[float]] = {name: [] for name in calls}
    order, shuffle = list(calls), random.Random(0)
    started = time.perf_counter()
    for number in range(warm + rounds):
        if number >= warm + min(LEAST_ROUNDS, rounds) and time.perf_counter() - started > seconds:
            break
        shuffle.shuffle(order)
        if beside is not None:
            beside()
        for name in order:
            begun = time.perf_counter()
            calls[name](number)
            took = time.perf_counter() - begun
            if number >= warm:
                found[name].append(took)
    return {name: Timing(tuple(times)) for name, times in found.items()}


def machine() -> dict[str, Any]:
    """What a figure depends on; load: running processes of the machine over the last minute."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "kernels": library.level(),
        "load": round(os.getloadavg()[0], 2),
    }


def cpu_name() -> str:
    """The processor's name as Linux tells it, with family and model, as virtual machines hide names."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    entries: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        entries.setdefault(key.strip(), value.strip())
    if "model name" not in entries:
        return "unknown CPU"
    return f"{entries['model name']} (family {entries.get('cpu family')}, model {entries.get('model')})"


def head_line(about: Mapping[str, Any]) -> str:
    """`machine` in one line."""
    return (
        f"{about['cpu']}, {about['threads']} threads of {about['cores']} cores, torch {about['torch']}, "
        f"kernels: {about['kernels']}, load before: {about['load']}"
    )


def wide_console(width: int = 130) -> Console:
    """A console that does not cut tables where output goes to a file."""
    return Console(width=max(width, Console().width))


def chosen(names: Iterable[str], wanted: str | None, what: str) -> list[str]:
    """Those of `names` that `wanted` lists, separated by commas; all for None. Raises SystemExit for another name."""
    known = list(names)
    if wanted is None:
        return known
    unknown = [name for name in wanted.split(",") if name not in known]
    if unknown:
        raise SystemExit(f"error: no {what} {', '.join(unknown)}; there are {', '.join(known)}")
    return [name for name in known if name in wanted.split(",")]
