"""Seconds by phase of the work, on a clock of the test's own."""

from collections.abc import Iterator

import pytest

from channelwise.engine.phases import PHASES, Phases


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr("time.perf_counter", clock)
    return clock


def test_every_phase_is_told_even_if_it_took_no_time() -> None:
    assert Phases().taken() == dict.fromkeys(PHASES, 0.0)


def test_time_outside_of_phases_counts_for_none(clock: Clock) -> None:
    phases = Phases()
    clock.now += 5
    with phases.of("read"):
        clock.now += 2
    clock.now += 7
    with phases.of("read"):
        clock.now += 1
    assert phases.taken() == {**dict.fromkeys(PHASES, 0.0), "read": 3.0}


def test_a_phase_within_another_counts_for_itself_alone(clock: Clock) -> None:
    phases = Phases()
    with phases.of("round"):
        clock.now += 1
        with phases.of("choose"):
            clock.now += 10
            with phases.of("round"):
                clock.now += 100
        clock.now += 1000
    assert phases.seconds["round"] == 1101.0
    assert phases.seconds["choose"] == 10.0


def test_a_phase_that_fails_is_counted_and_left(clock: Clock) -> None:
    phases = Phases()

    def failing() -> None:
        with phases.of("write"):
            clock.now += 3
            raise KeyError

    with phases.of("advance"):
        with pytest.raises(KeyError):
            failing()
        clock.now += 4
    assert (phases.seconds["write"], phases.seconds["advance"]) == (3.0, 4.0)


def test_what_was_taken_is_counted_from_0_again(clock: Clock) -> None:
    phases = Phases()
    with phases.of("read"):
        clock.now += 2
    assert phases.taken()["read"] == 2.0
    with phases.of("read"):
        clock.now += 1
    assert phases.taken()["read"] == 1.0
