"""What a language model does, as calls that can be captured: prefill, and decoding with a static cache."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from timing import Call, nothing
from transformers import AttentionInterface, StaticCache
from transformers.cache_utils import StaticLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

WITH_MASK, CAUSAL = "sdpa", "causal_without_a_mask"
"""Ways of attention. While a graph is captured, transformers makes a mask for every pass; with it a long prefill would
miss the fast kernels that it takes otherwise. For a way that it has no masks for, it makes none."""

AttentionInterface.register(CAUSAL, sdpa_attention_forward)

Model = Callable[..., Any]
"""A language model of transformers, compiled or not."""


@dataclass(frozen=True)
class Runs:
    """calls: each gives logits; before: what is done before them, each time."""

    calls: tuple[Call, ...]
    before: Callable[[], object] = nothing


class Phase(Protocol):
    """tokens: that one call handles."""

    tokens: int

    def of(self, model: Any) -> Runs:
        """The calls of a model; logits are [sequences, 1, vocabulary]."""
        ...


class Prefill:
    """One pass over random tokens [batch, length] without a cache, logits of the last token of each."""

    def __init__(self, batch: int, length: int, device: str) -> None:
        self.tokens = batch * length
        self._size, self._device = (batch, length), device

    def of(self, model: Any) -> Runs:
        """See `Phase`."""
        ids = _random_tokens(model, self._size, self._device)

        def call() -> torch.Tensor:
            logits: torch.Tensor = model(input_ids=ids, use_cache=False, logits_to_keep=1).logits
            return logits

        return Runs((call,), lambda: _attend(model, CAUSAL))


class Decoding:
    """Steps of one token each of one sequence, behind a context of random tokens in a static cache."""

    def __init__(self, context: int, steps: int, device: str) -> None:
        self.tokens = 1
        self._context, self._steps, self._device = context, steps, device

    def of(self, model: Any) -> Runs:
        """See `Phase`."""
        cache = StaticCache(config=model.config, max_cache_len=self._context + self._steps)
        prompt = _random_tokens(model, (1, self._context), self._device)
        _attend(model, WITH_MASK)
        model(input_ids=prompt, past_key_values=cache, use_cache=True, logits_to_keep=1)
        tokens = [_random_tokens(model, (1, 1), self._device, step) for step in range(self._steps)]

        def call(ids: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = model(input_ids=ids, past_key_values=cache, use_cache=True).logits
            return logits

        def rewind() -> None:
            _attend(model, WITH_MASK)
            for layer in cache.layers:
                assert isinstance(layer, StaticLayer)
                layer.cumulative_length.fill_(self._context)

        return Runs(tuple(partial(call, ids) for ids in tokens), rewind)


def _attend(model: Any, way: str) -> None:
    model.config._attn_implementation = way


def _random_tokens(model: Any, size: tuple[int, int], device: str, seed: int = 0) -> torch.Tensor:
    """The same for all models with one vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, model.config.vocab_size, size, generator=generator).to(device)
