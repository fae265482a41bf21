"""Going on from a prompt, greedily."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from channelwise.errors import InputError
from channelwise.model.batches import accepted, check_vocabulary, is_causal, length_limit


@dataclass(frozen=True)
class Generation:
    """text: the prompt and what follows. tokens: how many were added. seconds: wall time."""

    prompt: str
    text: str
    tokens: int
    seconds: float


@torch.no_grad()
def generate_text(
    model: torch.nn.Module,
    tokenizer: Any,
    prompt: str,
    *,
    max_tokens: int,
    on_text: Callable[[str], None] | None = None,
) -> Generation:
    """At most max_tokens likeliest tokens after the prompt; on_text gets the text in pieces, the prompt first.

    Raises InputError for a model that does not generate, an empty prompt, or one that fills the model's positions.
    """
    from transformers import TextStreamer

    if not is_causal(model):
        raise InputError(f"{type(model).__name__} does not generate text; it is no causal language model")
    if tokenizer is None:
        raise InputError("the model has no tokenizer to read the prompt with; put its tokenizer beside it")
    ids = torch.tensor([tokenizer(prompt, verbose=False)["input_ids"]], dtype=torch.int64)
    if ids.numel() == 0:
        raise InputError("the prompt is empty; give --prompt some text")
    check_vocabulary([{"input_ids": ids}], model, "the prompt")
    limit = length_limit(model, tokenizer)
    room = max_tokens if limit is None else min(max_tokens, limit - ids.shape[1])
    if room < 1:
        raise InputError(f"the prompt has {ids.shape[1]} tokens, the model {limit} positions; give a shorter prompt")
    inputs = accepted(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    started = time.perf_counter()
    result = model.generate(  # type: ignore[operator]
        **inputs,
        max_new_tokens=room,
        do_sample=False,
        pad_token_id=_padding_id(model),
        streamer=None if on_text is None else _streamer(TextStreamer, tokenizer, on_text),
    )
    seconds = time.perf_counter() - started
    text = tokenizer.decode(result[0], skip_special_tokens=True)
    return Generation(prompt, text, result.shape[1] - ids.shape[1], seconds)


def _padding_id(model: torch.nn.Module) -> int:
    """Never used for one prompt, but generate remarks where it is not set."""
    config: Any = model.generation_config
    eos = config.eos_token_id
    known = config.pad_token_id if config.pad_token_id is not None else eos[0] if isinstance(eos, list) else eos
    return 0 if known is None else int(known)


def _streamer(base: Any, tokenizer: Any, on_text: Callable[[str], None]) -> Any:
    """A transformers streamer that hands finished pieces of text to on_text."""
    streamer = base(tokenizer, skip_special_tokens=True)
    streamer.on_finalized_text = lambda text, stream_end=False: on_text(text)
    return streamer
