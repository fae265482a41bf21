"""Token perplexity, as the GPTQ line of papers measures it."""

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from channelwise.errors import InputError, NumericalError
from channelwise.model.batches import accepted, equal_length_batches
from channelwise.runtime.widening import in_wide_products

DEFAULT_LENGTH = 512

CACHED_LOGITS, LARGEST_LOGITS = 2**22, 2**28
"""Logits that are made at a time, on a processor and elsewhere: of more, memory is asked for anew at every batch."""


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log-likelihood.

    tokens: how many were predicted, one fewer than it holds in each window. length: of a window, in tokens.
    seconds: wall time.
    """

    perplexity: float
    tokens: int
    length: int
    seconds: float


def need_language_model(model: torch.nn.Module) -> None:
    """Raises InputError unless the model has an output head that predicts tokens."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is None:
        raise InputError(
            f"{type(model).__name__} predicts no tokens, so it has no perplexity; evaluate it with --embeddings, "
            "--classification or --images"
        )


def cut_windows(ids: torch.Tensor, length: int) -> list[torch.Tensor]:
    """The stream int64 [tokens] in windows of `length`; the shorter last one counts if it has at least two tokens."""
    return [window for window in ids.split(length) if len(window) >= 2]


@in_wide_products
@torch.no_grad()
def measure_perplexity(model: torch.nn.Module, ids: torch.Tensor, length: int) -> Perplexity:
    """Perplexity of a causal language model on one stream of token ids, int64 [tokens], in windows of `length`.

    Each window starts anew, its first token is not predicted; the mean runs over all predicted tokens of all windows,
    with logits in float32. Raises InputError for a model without a head or fewer than two tokens, NumericalError where
    the logits are not finite.
    """
    need_language_model(model)
    windows = cut_windows(ids, length)
    if not windows:
        raise InputError(f"the text has {len(ids)} tokens; perplexity needs at least two, give a longer text")
    started = time.perf_counter()
    was_training = model.training
    model.eval()
    total, tokens = 0.0, 0
    for batch in equal_length_batches(windows, with_mask=False):
        for rows in batch["input_ids"].split(_rows_at_once(model, batch["input_ids"].shape[1])):
            total += _negative_log_likelihood(model, rows)
            tokens += rows.numel() - len(rows)
    model.train(was_training)
    return Perplexity(math.exp(total / tokens), tokens, length, time.perf_counter() - started)


def _rows_at_once(model: torch.nn.Module, length: int) -> int:
    """How many windows have so few logits; at least one."""
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    vocabulary = getattr(head, "out_features", None) or 2**17
    most = CACHED_LOGITS if next(model.parameters()).device.type == "cpu" else LARGEST_LOGITS
    return max(1, most // (length * int(vocabulary)))


def _negative_log_likelihood(model: torch.nn.Module, rows: torch.Tensor) -> float:
    """Sum over the predicted tokens of int64 [B, T], in nats."""
    inputs = accepted(model, {"input_ids": rows})
    logits = model(**inputs, use_cache=False).logits[:, :-1].float()
    loss = cross_entropy(logits.flatten(0, 1), inputs["input_ids"][:, 1:].flatten(), reduction="sum")
    if not torch.isfinite(loss):
        raise NumericalError("the model's logits are not finite; its weights are damaged or its dtype overflows")
    return loss.item()
