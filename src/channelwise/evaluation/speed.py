"""How fast models are beside each other: tokens per second of reading a text, and of going on from it."""

import inspect
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from channelwise.model.batches import Batch, is_causal
from channelwise.model.blocks import find_blocks
from channelwise.model.calls import capture_calls

PROMPT_TOKENS, NEW_TOKENS = 16, 16
"""How long the text is that a model goes on from, and by how much, where its sample and its positions allow."""

FEWEST_ROUNDS, MOST_ROUNDS, ENOUGH_SECONDS = 3, 15, 1.5
"""Rounds of one measurement go on until so many seconds per model are spent."""


@dataclass(frozen=True)
class Speed:
    """Tokens per second.

    prefill: of one sample read at once; an image counts as the tokens that its model makes of it. decode: of greedy
    generation after a short prompt, one token after another; None for models that do not generate.
    """

    prefill: float
    decode: float | None

    def over(self, other: "Speed") -> dict[str, float | None]:
        """This speed as multiples of the other's, by `prefill` and `decode`."""
        decode = None if self.decode is None or other.decode is None else self.decode / other.decode
        return {"prefill": self.prefill / other.prefill, "decode": decode}


@torch.no_grad()
def measure_speeds(models: Sequence[nn.Module], tokens: int, batch: Batch) -> list[Speed]:
    """The speed of each model on a batch of one sample, which holds so many tokens.

    The models take turns, so that a machine that slows down slows all of them; what counts is the median round.
    """
    device = next(models[0].parameters()).device
    prefill = _medians([_reading(model, batch) for model in models], device)
    if not all(is_causal(model) for model in models) or "input_ids" not in batch or tokens < 2:
        return [Speed(tokens / seconds, None) for seconds in prefill]
    prompt = min(PROMPT_TOKENS, tokens // 2)
    new = min(NEW_TOKENS, tokens - prompt)
    decode = _medians([_writing(model, batch["input_ids"][:, :prompt], new) for model in models], device)
    return [Speed(tokens / read, new / write) for read, write in zip(prefill, decode, strict=True)]


def token_count(model: nn.Module, batch: Batch) -> int:
    """How many tokens of a batch enter the model's blocks: only the model knows what an image is made of."""
    if "input_ids" in batch:
        return batch["input_ids"].numel()
    blocks = find_blocks(model)
    return capture_calls(model, blocks, [batch])[0][0].hidden()[..., 0].numel()


def _reading(model: nn.Module, batch: Batch) -> Callable[[], Any]:
    """One forward pass; of the logits only the last, as generation asks for them."""
    known = inspect.signature(model.forward).parameters
    wanted = {"use_cache": False, "logits_to_keep": 1}
    options = {name: value for name, value in wanted.items() if name in known}
    return lambda: model(**batch, **options)


def _writing(model: Any, prompt: torch.Tensor, new: int) -> Callable[[], Any]:
    """Exactly `new` tokens after the prompt [1, tokens], greedily."""
    from transformers import GenerationConfig

    settings = GenerationConfig(
        max_new_tokens=new, min_new_tokens=new, do_sample=False, num_beams=1, use_cache=True, pad_token_id=0
    )
    mask = torch.ones_like(prompt)
    return lambda: model.generate(input_ids=prompt, attention_mask=mask, generation_config=settings)


def _medians(works: Sequence[Callable[[], Any]], device: torch.device) -> list[float]:
    """The median seconds of each work; one more run of each, before, is not counted."""
    for work in works:
        _seconds(work, device)
    rounds: list[list[float]] = []
    while len(rounds) < FEWEST_ROUNDS or (len(rounds) < MOST_ROUNDS and _total(rounds) < ENOUGH_SECONDS * len(works)):
        rounds.append([_seconds(work, device) for work in works])
    return [statistics.median(of_work) for of_work in zip(*rounds, strict=True)]


def _total(rounds: Sequence[Sequence[float]]) -> float:
    return sum(map(sum, rounds))


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Wall time of one run, with what the device still had to do."""
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
