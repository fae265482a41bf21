"""Sentence embeddings of a model against those of its floating-point original: cosine, and a linear probe."""

import importlib.util
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cosine_similarity, normalize

from channelwise.errors import InputError, NumericalError
from channelwise.model.batches import accepted, grouped_by_length
from channelwise.runtime.widening import in_wide_products

DEFAULT_LENGTH = 256


@dataclass(frozen=True)
class Agreement:
    """How near the embeddings are to the original's.

    cosine_mean, cosine_min: over the sentences. probe_accuracy, probe_accuracy_fp: of a linear probe on this model's
    and on the original's embeddings, None without labels.
    """

    cosine_mean: float
    cosine_min: float
    probe_accuracy: float | None
    probe_accuracy_fp: float | None


@dataclass(frozen=True)
class Embeddings:
    """Unit vectors, float32 [sentences, channels]; how many tokens they were made of, and the wall time in seconds."""

    vectors: torch.Tensor
    tokens: int
    seconds: float


@in_wide_products
@torch.no_grad()
def embed(model: torch.nn.Module, sentences: Sequence[torch.Tensor]) -> Embeddings:
    """Mean over the tokens of the last hidden state, L2-normalised, of each sentence of ids int64 [tokens].

    Sentences of equal length share a batch, so there is no padding. Raises NumericalError where one is not finite.
    """
    started = time.perf_counter()
    was_training = model.training
    model.eval()
    vectors: list[torch.Tensor | None] = [None] * len(sentences)
    for group, places in grouped_by_length(sentences):
        ids = torch.stack(group)
        pooled = _last_hidden_state(model, ids).float().mean(dim=1)
        for place, vector in zip(places, normalize(pooled, dim=-1).cpu(), strict=True):
            vectors[place] = vector
    model.train(was_training)
    stacked = torch.stack([vector for vector in vectors if vector is not None])
    if not torch.isfinite(stacked).all():
        raise NumericalError("the model's hidden states are not finite; its weights are damaged or its dtype overflows")
    return Embeddings(stacked, sum(map(len, sentences)), time.perf_counter() - started)


def agreement(vectors: torch.Tensor, original: torch.Tensor, labels: Sequence[str] | None) -> Agreement:
    """Both [sentences, channels], of the same sentences in the same order. Raises InputError as `probe_accuracy`."""
    if vectors.shape != original.shape:
        raise InputError(
            f"embeddings of {vectors.shape[-1]} channels cannot be compared with {original.shape[-1]}; "
            f"--against must name the model's own floating-point original"
        )
    cosines = cosine_similarity(vectors.double(), original.double(), dim=-1)
    return Agreement(
        cosine_mean=cosines.mean().item(),
        cosine_min=cosines.min().item(),
        probe_accuracy=None if labels is None else probe_accuracy(vectors, labels),
        probe_accuracy_fp=None if labels is None else probe_accuracy(original, labels),
    )


def probe_accuracy(vectors: torch.Tensor, labels: Sequence[str]) -> float:
    """Share of right labels by a logistic regression (C = 1) on [sentences, channels].

    It learns from the first half, rounded down, and is tested on the rest, so nothing is drawn at random.
    Raises InputError without scikit-learn, and where the first half has fewer than two labels.
    """
    check_probe(labels)
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped, unused-ignore]

    half = len(labels) // 2
    probe = LogisticRegression(max_iter=2000).fit(vectors[:half].numpy(), list(labels[:half]))
    return float(probe.score(vectors[half:].numpy(), list(labels[half:])))


def check_probe(labels: Sequence[str]) -> None:
    """Raises InputError where `probe_accuracy` could not run."""
    if importlib.util.find_spec("sklearn") is None:
        raise InputError("the linear probe needs scikit-learn; `pip install scikit-learn`, or leave the labels out")
    if len(set(labels[: len(labels) // 2])) < 2:
        raise InputError("the first half of the labels has fewer than two kinds; shuffle the file's lines")


def _last_hidden_state(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """[B, T, channels] for ids [B, T]; of a model with a head, the state below the head."""
    outputs: Any = model(
        **accepted(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}), output_hidden_states=True
    )
    state = getattr(outputs, "last_hidden_state", None)
    if state is None:
        states = getattr(outputs, "hidden_states", None)
        if not states:
            raise InputError(f"{type(model).__name__} gives no hidden states, so it has no sentence embeddings")
        state = states[-1]
    return state
