"""Where a walk's time goes: seconds by phase of the work."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

PHASES = ("read", "sites", "statistics", "choose", "round", "advance", "write")


@dataclass
class Phases:
    """Wall time in seconds of each phase; a phase within another counts for itself alone."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    _running: list[str] = field(default_factory=list)
    _since: float = 0.0

    @contextmanager
    def of(self, phase: str) -> Iterator[None]:
        """Counts the time within for this phase."""
        self._count()
        self._running.append(phase)
        try:
            yield
        finally:
            self._count()
            self._running.pop()

    def _count(self) -> None:
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now

    def taken(self) -> dict[str, float]:
        """The seconds so far, and from now on from 0 again."""
        seconds, self.seconds = self.seconds, dict.fromkeys(PHASES, 0.0)
        return seconds
