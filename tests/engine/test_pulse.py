import pytest
from hypothesis import given
from hypothesis import strategies as st

from channelwise.engine.pulse import Pulse, RankLostError, Silences, State


@given(st.integers(0), st.sampled_from(State), st.integers(0, 999))
def test_a_pulse_survives_the_store(beats: int, state: State, cause: int) -> None:
    pulse = Pulse(beats, state, cause)
    assert Pulse.parsed(pulse.text()) == pulse


def test_silence_is_the_time_since_a_counter_last_changed() -> None:
    silences = Silences(2, most=10)
    for now, counters in [(100, (1, 1)), (103, (2, 1)), (107, (3, 1)), (108, (3, 2))]:
        silences.look(counters, now)
    assert silences.seconds == [1, 0]
    silences.look((3, 2), 112)
    assert silences.seconds == [5, 4]


def test_the_time_that_this_process_itself_was_away_is_not_the_others_silence() -> None:
    silences = Silences(1, most=2)
    silences.look((1,), 0)
    silences.look((1,), 3600)
    assert silences.seconds == [2]


def test_counters_do_not_come_or_go() -> None:
    silences = Silences(2, most=2)
    silences.look((1, 1), 0)
    with pytest.raises(ValueError, match="shorter"):
        silences.look((1,), 1)


def test_a_lost_rank_is_told_with_what_to_do() -> None:
    error = RankLostError("rank 1 on host-b, silent for 40 s", 1)
    assert str(error) == (
        "another process of this run has stopped (rank 1 on host-b, silent for 40 s); "
        "see its messages, then run the same command with --resume"
    )
    with pytest.raises(RuntimeError):
        raise error
