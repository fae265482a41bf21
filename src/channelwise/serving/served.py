"""The model that is served, opened and checked before anything listens."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from channelwise.errors import InputError
from channelwise.model.batches import is_causal, length_limit
from channelwise.opening import opened

DTYPES = ("auto", "float32", "bfloat16", "float16")

_PLAIN_TURNS = (
    "{% if tools %}{{ raise_exception('the model has no chat template, so it cannot be offered tools') }}{% endif %}"
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
"""One line `role: content` per message, for models that were never shown any other form."""


@dataclass(frozen=True)
class Served:
    """name: under which clients ask for it. limit: tokens of prompt and answer together, None without a limit.

    plain_chat: chat goes through lines `role: content`, as the tokenizer has no chat template.
    """

    name: str
    model: Any
    tokenizer: Any
    limit: int | None
    plain_chat: bool


def open_served(source: str, *, name: str | None = None, device: str = "cpu", dtype: str = "auto") -> Served:
    """The model to serve, by directory, hub name or "demo". name: None takes the directory's.

    Raises InputError for a model that does not generate text or has no fast tokenizer, and as `opened` does.
    """
    if dtype not in DTYPES:
        raise InputError(f"--dtype {dtype} is none of {', '.join(DTYPES)}")
    found = opened(source, device, allow_quantized=True, dtype=dtype if dtype == "auto" else getattr(torch, dtype))
    tokenizer = found.tokenizer
    if not is_causal(found.model):
        raise InputError(f"{type(found.model).__name__} does not generate text; it is no causal language model")
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise InputError(f"{source} has no tokenizer.json to read prompts with; put its tokenizer beside it")
    plain = getattr(tokenizer, "chat_template", None) is None
    if plain:
        tokenizer.chat_template = _plain_template(tokenizer)
    return Served(name or _name(source), found.model, tokenizer, length_limit(found.model, tokenizer), plain)


def _name(source: str) -> str:
    """The directory's name, or the name itself where it names no directory."""
    path = Path(source).expanduser()
    return path.resolve().name if path.is_dir() else source


def _plain_template(tokenizer: Any) -> str:
    """Plain turns behind the token that the tokenizer puts before every text, if it does."""
    ids = tokenizer("a")["input_ids"]
    begins = tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
    return ("{{ bos_token }}" if begins else "") + _PLAIN_TURNS
