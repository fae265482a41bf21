"""Sentence embeddings: pooling, cosine, the linear probe."""

from typing import Any

import pytest
import torch

from channelwise.errors import InputError
from channelwise.evaluation.embeddings import agreement, embed, probe_accuracy
from tests.cli import tiny


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny.bert()


def test_each_is_the_normalised_mean_of_its_last_hidden_states(model: Any) -> None:
    sentences = [torch.randint(4, 60, (length,)) for length in (5, 3, 5, 8)]
    found = embed(model, sentences)
    assert found.tokens == 21
    for sentence, vector in zip(sentences, found.vectors, strict=True):
        with torch.no_grad():
            mean = model(sentence[None]).last_hidden_state[0].mean(dim=0)
        torch.testing.assert_close(vector, mean / mean.norm(), rtol=1e-4, atol=1e-5)


def test_a_model_with_a_head_is_read_below_it() -> None:
    causal = tiny.llama()
    ids = torch.arange(6)
    with torch.no_grad():
        mean = causal.model(ids[None]).last_hidden_state[0].mean(dim=0)
    torch.testing.assert_close(embed(causal, [ids]).vectors[0], mean / mean.norm(), rtol=1e-4, atol=1e-5)


def test_agreement_of_equal_and_of_opposite_vectors() -> None:
    vectors = torch.nn.functional.normalize(torch.randn(6, 4), dim=-1)
    same = agreement(vectors, vectors, None)
    assert same.cosine_mean == pytest.approx(1.0) and same.probe_accuracy is None
    turned = torch.cat([vectors[:5], -vectors[5:]])
    assert agreement(turned, vectors, None).cosine_min == pytest.approx(-1.0)


def test_the_probe_learns_from_the_first_half_and_is_tested_on_the_second() -> None:
    labels = ["yes", "no"] * 20
    vectors = torch.tensor([[1.0, 0.0] if label == "yes" else [0.0, 1.0] for label in labels])
    assert probe_accuracy(vectors, labels) == 1.0
    vectors[20:] = vectors[20:].flip(1)
    assert probe_accuracy(vectors, labels) == 0.0


def test_the_probe_needs_two_kinds_of_labels() -> None:
    with pytest.raises(InputError, match="fewer than two"):
        probe_accuracy(torch.randn(4, 2), ["0", "0", "0", "1"])


def test_models_of_another_width_are_not_compared() -> None:
    with pytest.raises(InputError, match="--against"):
        agreement(torch.randn(2, 3), torch.randn(2, 4), None)
