"""What the processes of one run tell each other of their lives, and how silence is counted."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from channelwise.errors import RankLostError as RankLostError


@dataclass(frozen=True)
class Pace:
    """How often the ranks look at each other; all in seconds."""

    period: float = 1.0
    """Between two beats."""
    limit: float = 40.0
    """Of silence, after which a rank counts as lost."""
    grace: float = 6.0
    """For the main thread to end by itself, and for learning which rank has stopped."""

    @property
    def suspicion(self) -> float:
        """Of silence, after which a rank's end explains an error that has already happened."""
        return 2 * self.period


class State(Enum):
    """What a rank says of itself."""

    RUNNING = "running"
    LEFT = "left"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


UNKNOWN = -1


@dataclass(frozen=True)
class Pulse:
    """What a rank writes into the store: a number that grows, its state, and which rank that comes from."""

    beats: int
    state: State
    cause: int
    """UNKNOWN if it has lost another one and cannot say which."""

    def text(self) -> str:
        """As it stands in the store."""
        return f"{self.beats} {self.state.value} {self.cause}"

    @classmethod
    def parsed(cls, text: str) -> "Pulse":
        """The inverse of `text`."""
        beats, state, cause = text.split()
        return cls(int(beats), State(state), int(cause))


def pulse_key(rank: int) -> str:
    """The store's key of a rank's pulse."""
    return f"pulse/{rank}"


class Silences:
    """How long each of several counters has stood still, in seconds.

    A process that was stopped itself (a suspended job, a machine asleep) finds all counters old at once. Its own
    absence is not the others' silence: one look adds at most `most` seconds.
    """

    def __init__(self, count: int, most: float) -> None:
        self.seconds = [0.0] * count
        self._most = most
        self._counters: list[int] | None = None
        self._last = 0.0

    def look(self, counters: Sequence[int], now: float) -> None:
        """Takes note of the counters at the time `now`, of a clock that only goes forward."""
        if self._counters is not None:
            elapsed = min(now - self._last, self._most)
            pairs = zip(self.seconds, self._counters, counters, strict=True)
            self.seconds = [seconds + elapsed if old == new else 0.0 for seconds, old, new in pairs]
        self._counters, self._last = list(counters), now
