"""Perplexity against a hand-written reference."""

import math
from typing import Any

import pytest
import torch

from channelwise.errors import InputError, NumericalError
from channelwise.evaluation.perplexity import cut_windows, measure_perplexity
from tests.cli import tiny


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny.llama()


def reference(model: Any, ids: list[int], length: int) -> tuple[float, int]:
    """One token after the other, window by window."""
    losses = []
    for start in range(0, len(ids), length):
        window = ids[start : start + length]
        for end in range(1, len(window)):
            with torch.no_grad():
                logits = model(torch.tensor([window[:end]])).logits[0, -1]
            losses.append(-torch.log_softmax(logits, 0)[window[end]].item())
    return math.exp(sum(losses) / len(losses)), len(losses)


@pytest.mark.parametrize(("tokens", "length"), [(30, 10), (34, 10), (31, 10), (7, 10), (2, 2)])
def test_equals_the_reference(model: Any, tokens: int, length: int) -> None:
    ids = torch.randint(tiny.VOCABULARY, (tokens,), generator=torch.Generator().manual_seed(tokens))
    found = measure_perplexity(model, ids, length)
    expected, predicted = reference(model, ids.tolist(), length)
    assert found.perplexity == pytest.approx(expected, rel=1e-5)
    assert (found.tokens, found.length) == (predicted, length)


def test_a_last_window_of_one_token_predicts_nothing() -> None:
    assert [len(window) for window in cut_windows(torch.arange(21), 10)] == [10, 10]
    assert [len(window) for window in cut_windows(torch.arange(22), 10)] == [10, 10, 2]


def test_does_not_depend_on_how_many_windows_share_a_batch(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.randint(tiny.VOCABULARY, (95,))
    together = measure_perplexity(model, ids, 10).perplexity
    monkeypatch.setattr("channelwise.evaluation.perplexity.CACHED_LOGITS", 1)
    assert measure_perplexity(model, ids, 10).perplexity == pytest.approx(together, rel=1e-6)


def test_logits_are_taken_to_float32() -> None:
    ids = torch.randint(tiny.VOCABULARY, (60,))
    model = tiny.llama()
    exact = measure_perplexity(model, ids, 20).perplexity
    assert measure_perplexity(model.bfloat16(), ids, 20).perplexity == pytest.approx(exact, rel=0.02)


def test_leaves_the_models_mode_alone(model: Any) -> None:
    model.train()
    measure_perplexity(model, torch.arange(8), 4)
    assert model.training
    model.eval()


def test_refuses_what_cannot_be_measured(model: Any) -> None:
    with pytest.raises(InputError, match="at least two"):
        measure_perplexity(model, torch.tensor([3]), 4)
    with pytest.raises(InputError, match="BertModel"):
        measure_perplexity(tiny.bert(), torch.arange(8), 4)


def test_numbers_that_are_not_finite_are_not_carried_along() -> None:
    broken = tiny.llama()
    broken.lm_head.weight.data[:] = torch.nan
    with pytest.raises(NumericalError, match="not finite"):
        measure_perplexity(broken, torch.arange(8), 4)
