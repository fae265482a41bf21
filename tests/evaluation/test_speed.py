"""Tokens per second, by a clock of our own; and on real models, that there are figures."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from channelwise.evaluation import speed
from channelwise.evaluation.speed import Speed, measure_speeds, token_count
from tests.cli import tiny


class _Clocked(nn.Module):
    """Takes the next of `reading` seconds to read, and `writing` seconds for each new token."""

    def __init__(self, clock: "_Clock", name: str, reading: list[float], writing: float | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.clock, self.name, self.reading, self.writing = clock, name, iter(reading), writing

    def can_generate(self) -> bool:
        return self.writing is not None

    def forward(self, input_ids: torch.Tensor, use_cache: bool = True, logits_to_keep: int = 0) -> None:
        assert not use_cache and logits_to_keep == 1
        self.clock.turn(self.name, next(self.reading))

    def generate(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, generation_config: Any) -> None:
        assert generation_config.min_new_tokens == generation_config.max_new_tokens
        assert not generation_config.do_sample and attention_mask.shape == input_ids.shape
        assert self.writing is not None
        self.clock.turn(
            f"{self.name} writes after {input_ids.shape[1]}", self.writing * generation_config.max_new_tokens
        )


class _Clock:
    def __init__(self) -> None:
        self.now, self.turns = 0.0, list[str]()

    def turn(self, name: str, seconds: float) -> None:
        self.now += seconds
        self.turns.append(name)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    own = _Clock()
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: own.now))
    return own


def batch(tokens: int) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.ones(1, tokens, dtype=torch.int64)}


def test_the_median_round_counts_and_the_first_does_not(clock: _Clock) -> None:
    model = _Clocked(clock, "a", [100.0, 2.0, 50.0, 4.0])
    assert measure_speeds([model], 100, batch(100)) == [Speed(100 / 4.0, None)]


def test_models_take_turns(clock: _Clock) -> None:
    models = [_Clocked(clock, "a", [1.0] * 4), _Clocked(clock, "b", [2.0] * 4)]
    slow, fast = measure_speeds(models, 10, batch(10))[::-1]
    assert clock.turns == ["a", "b"] * 4
    assert slow.over(fast) == {"prefill": 0.5, "decode": None}


def test_short_rounds_are_repeated_up_to_a_limit(clock: _Clock) -> None:
    measure_speeds([_Clocked(clock, "a", [0.001] * 100)], 10, batch(10))
    assert len(clock.turns) == 1 + speed.MOST_ROUNDS
    clock.turns.clear()
    measure_speeds([_Clocked(clock, "a", [0.2] * 100)], 10, batch(10))
    assert len(clock.turns) == 1 + 8


def test_writing_goes_on_from_a_short_prompt(clock: _Clock) -> None:
    found = measure_speeds([_Clocked(clock, "a", [1.0] * 4, writing=0.5)], 512, batch(512))[0]
    assert found == Speed(512.0, pytest.approx(2.0))
    assert clock.turns[-1] == f"a writes after {speed.PROMPT_TOKENS}"


def test_prompt_and_new_tokens_fit_into_a_short_sample(clock: _Clock) -> None:
    found = measure_speeds([_Clocked(clock, "a", [1.0] * 4, writing=1.0)], 5, batch(5))[0]
    assert found.decode == pytest.approx(1.0)
    assert clock.turns[-1] == "a writes after 2"


@pytest.mark.parametrize(("make", "generates"), [(tiny.llama, True), (tiny.bert, False)])
def test_models_of_texts(make: Callable[[], Any], generates: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "ENOUGH_SECONDS", 0.0)
    found = measure_speeds([make(), make()], 40, batch(40))
    assert len(found) == 2 and all(each.prefill > 0 for each in found)
    assert all((each.decode is not None) == generates for each in found)


def test_an_image_counts_as_its_patches() -> None:
    model = tiny.vit()
    assert token_count(model, {"pixel_values": torch.zeros(1, 3, 16, 16)}) == 17
    assert token_count(tiny.llama(), batch(40)) == 40
