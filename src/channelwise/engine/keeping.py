"""What a walk asks of its surroundings: the weights of a block when their turn comes, and a place for what is done."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from torch import nn

from channelwise.engine.plan import SiteRecord


@dataclass(frozen=True)
class StageOutcome:
    """What was done in one stage: its sites, what was chosen for the embedding, seconds by phase of the work."""

    records: tuple[SiteRecord, ...] = ()
    notes: dict[str, float | str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


class Weights(Protocol):
    """Where the weights come from; names are full module names, "" all that is outside the blocks."""

    @property
    def streamed(self) -> bool:
        """Whether weights are in place only between `load` and `release`."""
        ...

    def load(self, name: str) -> None:
        """Puts the weights of a module in place."""
        ...

    def release(self, name: str) -> None:
        """Gives their memory back."""
        ...


class Keeper(Protocol):
    """Keeps finished stages, and the hidden states behind them, so that another walk can go on there."""

    @property
    def finished(self) -> Sequence[StageOutcome]:
        """The stages that an earlier walk finished, from the first one on."""
        ...

    def hidden_folder(self, boundary: int) -> Path | None:
        """Where the hidden states before block `boundary` outlive the walk, or None."""
        ...

    def finish(self, index: int, name: str, module: nn.Module, outcome: StageOutcome) -> None:
        """Keeps a stage: a block, or under the name "" the model with all that is outside its blocks."""
        ...


@dataclass(frozen=True)
class InPlace:
    """The weights of a model that is whole in memory."""

    streamed: bool = False

    def load(self, name: str) -> None:
        """They are there."""

    def release(self, name: str) -> None:
        """They stay."""


@dataclass(frozen=True)
class KeepNothing:
    """For models whose result stays in memory."""

    finished: Sequence[StageOutcome] = ()

    def hidden_folder(self, boundary: int) -> Path | None:
        """Nowhere."""
        return None

    def finish(self, index: int, name: str, module: nn.Module, outcome: StageOutcome) -> None:
        """The module is in its place."""


@contextmanager
def _loaded(weights: Weights, name: str) -> Iterator[None]:
    weights.load(name)
    try:
        yield
    finally:
        weights.release(name)


def loaded(weights: Weights, name: str) -> AbstractContextManager[None]:
    """A context in which a module's weights are in place."""
    return _loaded(weights, name)
