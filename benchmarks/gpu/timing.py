"""What is timed and how it is told: turns of several calls, and the times of all rounds."""

import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

LEAST_ROUNDS = 5

Call = Callable[[], torch.Tensor]


def nothing() -> None:
    """What is to be done before a turn that needs nothing."""


@dataclass(frozen=True)
class Turn:
    """`calls` calls, one after another, each on other weights and inputs than the last; run: all of them.

    before: what is done, untimed, before each turn. captured: whether the calls are a replay of a CUDA graph.
    """

    run: Call
    calls: int
    captured: bool
    before: Callable[[], object] = nothing

    def poisoned(self) -> torch.Tensor:
        """The output of the last call, in memory that held NaN before: what a kernel leaves out shows."""
        self.before()
        self.run().fill_(float("nan"))
        self.before()
        return self.run()


@dataclass(frozen=True)
class Timing:
    """Seconds of one call, of every round."""

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

    def spread(self) -> str:
        """The quartiles in microseconds, as `first–third`."""
        return "–".join(f"{value * 1e6:,.1f}" for value in self.quartiles)

    def to_dict(self) -> dict[str, Any]:
        """Median, quartiles and every round, in microseconds."""
        return {
            "median_us": self.median * 1e6,
            "quartiles_us": [value * 1e6 for value in self.quartiles],
            "microseconds": [round(value * 1e6, 3) for value in self.seconds],
        }


def shuffled_rounds(names: Mapping[str, object], rounds: int, seconds: float) -> Iterator[list[str]]:
    """All names in an order drawn anew, `rounds` times; after `seconds` and LEAST_ROUNDS rounds no other begins."""
    order, shuffle, started = list(names), random.Random(0), time.perf_counter()
    for number in range(rounds):
        if number >= LEAST_ROUNDS and time.perf_counter() - started > seconds:
            return
        shuffle.shuffle(order)
        yield list(order)


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """‖found − exact‖ / ‖exact‖, NaN where something was not written."""
    return float((found.double() - exact).norm() / exact.norm())
