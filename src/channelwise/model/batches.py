"""Inputs for a model: windows of a running text, single texts, or images; batches never hold padding."""

import inspect
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from channelwise.errors import InputError
from channelwise.model.images import Images, check_images, names_images, read_images
from channelwise.model.pixels import need_image_model, need_text_model, pixels_for
from channelwise.model.sources import one_line
from channelwise.model.texts import Texts, read_texts
from channelwise.runtime.embedding import QuantizedEmbedding

TOKENS_PER_BATCH = 2048
IMAGES_PER_BATCH = 8

Batch = dict[str, torch.Tensor]
Data = str | Path | Sequence[str] | Texts | Images | torch.Tensor
_Item = TypeVar("_Item")


def read_data(data: Data) -> Texts | Images | torch.Tensor:
    """Texts read and checked, images listed; tensors as they are. Raises InputError as their readers do."""
    if isinstance(data, torch.Tensor | Images):
        return data
    return read_images(data) if names_images(data) else read_texts(data)


def calibration_batches(
    data: Data, tokenizer: Any, model: torch.nn.Module, *, samples: int, length: int, seed: int, processor: Any = None
) -> list[Batch]:
    """Batches of at most `samples` samples, chosen without repetition by the seed, of ≤ 2048 tokens each, no padding.

    A causal model, and any model given a .txt, gets windows of exactly `length` tokens of the running text; other
    models get one text a sample, cut off at `length`. Of images only the chosen ones are decoded, for the processor.
    Tensors are taken as they are: token ids [N, L] or pixel values [N, C, H, W]. Raises InputError where there is less
    than one window, no tokenizer, an id beyond the vocabulary; where images do not fit, or are of the other kind.
    """
    data = read_data(data)
    if isinstance(data, torch.Tensor):
        return _tensor_batches(data, model, samples, seed)
    if isinstance(data, Images):
        pixels = pixels_for(model, data, processor)
        places = _choose(range(len(data)), samples, seed)
        check_images(data, places)
        return _image_batches(pixels.take(places), model)
    return _text_batches(data, tokenizer, model, samples, length, seed)


def _text_batches(
    texts: Texts, tokenizer: Any, model: torch.nn.Module, samples: int, length: int, seed: int
) -> list[Batch]:
    need_text_model(model, texts.source)
    _need_tokenizer(tokenizer, texts)
    if is_causal(model):
        windows = _stream_windows(texts, tokenizer, length)
    elif texts.is_stream:
        windows = _wrapped_windows(texts, tokenizer, length)
    else:
        windows = tokenize_items(texts, tokenizer, length)
    batches = equal_length_batches(_choose(windows, samples, seed), with_mask=not is_causal(model))
    check_vocabulary(batches, model, texts.source)
    return batches


def token_stream(texts: Texts, tokenizer: Any) -> torch.Tensor:
    """The whole running text tokenized once, with the special tokens the tokenizer adds by itself; int64 [tokens]."""
    _need_tokenizer(tokenizer, texts)
    ids = tokenizer(texts.stream, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.int64)


def tokenize_items(texts: Texts, tokenizer: Any, length: int) -> list[torch.Tensor]:
    """One int64 [tokens ≤ length] for each text, with special tokens, in the texts' order."""
    _need_tokenizer(tokenizer, texts)
    encoded = tokenizer(list(texts.items), truncation=True, max_length=length, verbose=False)["input_ids"]
    return [torch.tensor(ids, dtype=torch.int64) for ids in encoded]


def equal_length_batches(sequences: Sequence[torch.Tensor], *, with_mask: bool) -> list[Batch]:
    """Batches {input_ids [B, T], attention_mask of ones} of sequences of one length each, shortest first."""
    return [_batch(torch.stack(group), with_mask) for group, _ in grouped_by_length(sequences)]


def grouped_by_length(sequences: Sequence[torch.Tensor]) -> list[tuple[list[torch.Tensor], list[int]]]:
    """Groups of equal length and at most 2048 tokens, each with its sequences' places in the input."""
    places: dict[int, list[int]] = defaultdict(list)
    for place, sequence in enumerate(sequences):
        places[len(sequence)].append(place)
    groups = []
    for length in sorted(places):
        size = max(1, TOKENS_PER_BATCH // max(1, length))
        members = places[length]
        for start in range(0, len(members), size):
            chunk = members[start : start + size]
            groups.append(([sequences[place] for place in chunk], chunk))
    return groups


def is_causal(model: torch.nn.Module) -> bool:
    """Whether the model generates text from left to right, so that windows of a running text are its food."""
    can_generate = getattr(model, "can_generate", None)
    return bool(can_generate()) if callable(can_generate) else False


def length_limit(model: torch.nn.Module, tokenizer: Any) -> int | None:
    """The most tokens the model takes at once, by its config, its position table and its tokenizer; None: no limit."""
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    limits = [getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len")]
    limits.append(getattr(tokenizer, "model_max_length", None))
    for name, module in model.named_modules():
        # RoBERTa's kin number positions from padding_idx + 1, so their tables hold fewer than they have rows
        if isinstance(module, torch.nn.Embedding) and "position" in name and module.padding_idx is not None:
            limits.append(module.num_embeddings - module.padding_idx - 1)
    known = [limit for limit in limits if isinstance(limit, int) and 0 < limit < 10**9]
    return min(known, default=None)


def window_length(requested: int | None, default: int, limit: int | None) -> int:
    """The requested length, or the default cut to the limit. Raises InputError for one below 2 or beyond the limit."""
    if requested is None:
        return default if limit is None else min(default, limit)
    if requested < 2:
        raise InputError(f"a window of {requested} tokens is too short; give --length 2 or more")
    if limit is not None and requested > limit:
        raise InputError(f"--length {requested} is beyond the model's {limit} positions; give --length {limit} or less")
    return requested


def vocabulary_size(model: torch.nn.Module) -> int | None:
    """Rows of the input embedding; None where the model has none (an image model)."""
    getter = getattr(model, "get_input_embeddings", None)
    try:
        embedding = getter() if callable(getter) else None
    except NotImplementedError:  # models of several towers have none to name
        return None
    return embedding.num_embeddings if isinstance(embedding, torch.nn.Embedding | QuantizedEmbedding) else None


def check_vocabulary(batches: Sequence[Batch], model: torch.nn.Module, source: str) -> None:
    """Raises InputError where a token id of {input_ids} lies beyond the model's vocabulary."""
    size = vocabulary_size(model)
    found = [id for batch in batches for id in batch["input_ids"].aminmax()] if size is not None else []
    for token in map(int, found):
        if not 0 <= token < (size or 0):
            raise InputError(
                f"the tokenizer does not belong to the model: {source} gives token id {token}, the model's vocabulary "
                f"has {size} entries; put the model's own tokenizer beside it"
            )


def accepted(model: torch.nn.Module, batch: Batch, device: torch.device | None = None) -> Batch:
    """The entries of the batch that the model's forward takes, on a device: None takes the model's."""
    parameters = inspect.signature(model.forward).parameters
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    device = next(model.parameters()).device if device is None else device
    return {name: value.to(device) for name, value in batch.items() if name in parameters or open_ended}


@torch.no_grad()
def try_images(model: torch.nn.Module, pixels: torch.Tensor) -> Any:
    """The model's outputs for the first image of [N, C, H, W]. Raises InputError where it does not take such images."""
    try:
        return model(**accepted(model, {"pixel_values": pixels[:1]}))
    except (ValueError, RuntimeError, TypeError) as error:
        raise InputError(
            f"{type(model).__name__} does not take pixel values [C, H, W] of {list(pixels.shape[1:])} "
            f"({one_line(error)}); give images, or an image processor, of the model's own size"
        ) from error


def _need_tokenizer(tokenizer: Any, texts: Texts) -> None:
    """Raises InputError where a text is given and no tokenizer."""
    if tokenizer is None:
        raise InputError(f"the model has no tokenizer to read {texts.source} with; put its tokenizer beside it")


def _stream_windows(texts: Texts, tokenizer: Any, length: int) -> list[torch.Tensor]:
    """All whole windows of the running text, each int64 [length]; a rest at the end is left out."""
    ids = token_stream(texts, tokenizer)
    _need_a_window(texts, len(ids), length)
    return list(ids[: len(ids) // length * length].view(-1, length))


def _wrapped_windows(texts: Texts, tokenizer: Any, length: int) -> list[torch.Tensor]:
    """Windows of the running text with special tokens around each, as an encoder saw them; int64 [length]."""
    encoded = tokenizer(
        texts.stream, truncation=True, max_length=length, return_overflowing_tokens=True, verbose=False
    )["input_ids"]
    nested = encoded if encoded and isinstance(encoded[0], list) else [encoded]
    windows = [torch.tensor(ids, dtype=torch.int64) for ids in nested if len(ids) == length]
    _need_a_window(texts, sum(map(len, nested)) if not windows else length, length)
    return windows


def _need_a_window(texts: Texts, tokens: int, length: int) -> None:
    """Raises InputError where the text has fewer tokens than one window."""
    if tokens < length:
        raise InputError(
            f"{texts.source} has {tokens} tokens, fewer than one window of {length}; "
            f"give a longer text, or a smaller --length"
        )


def _tensor_batches(data: torch.Tensor, model: torch.nn.Module, samples: int, seed: int) -> list[Batch]:
    """Token ids [N, L], integer, or pixel values [N, C, H, W], floating point. Raises InputError for other tensors."""
    is_ids = data.ndim == 2 and not data.is_floating_point() and not data.is_complex() and data.dtype != torch.bool
    is_pixels = data.ndim == 4 and data.is_floating_point()
    if not (is_ids or is_pixels) or data.numel() == 0:
        raise InputError(
            f"data is a tensor {list(data.shape)} of {data.dtype}; "
            f"give integer token ids [N, L] or floating-point pixel values [N, C, H, W]"
        )
    if is_pixels:
        need_image_model(model, "the tensor [N, C, H, W]")
        return _image_batches(torch.stack(_choose(list(data), samples, seed)), model)
    need_text_model(model, "the tensor [N, L]")
    batches = equal_length_batches(_choose(list(data.long()), samples, seed), with_mask=not is_causal(model))
    check_vocabulary(batches, model, "the tensor of token ids")
    return batches


def _image_batches(pixels: torch.Tensor, model: torch.nn.Module) -> list[Batch]:
    """Batches {pixel_values [B, C, H, W]}. Raises InputError where the model does not take such images."""
    try_images(model, pixels)
    return [{"pixel_values": part} for part in pixels.split(IMAGES_PER_BATCH)]


def _choose(sequences: Sequence[_Item], samples: int, seed: int) -> list[_Item]:
    """At most `samples` of the sequences, without repetition, in their order."""
    if samples < 1:
        raise InputError(f"{samples} calibration samples are none; give --samples 1 or more")
    places = range(len(sequences))
    chosen = sorted(random.Random(seed).sample(places, min(samples, len(sequences))))
    return [sequences[place] for place in chosen]


def _batch(ids: torch.Tensor, with_mask: bool) -> Batch:
    """Token ids [B, T] as a model's inputs; encoders get the mask, because they warn without one."""
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)} if with_mask else {"input_ids": ids}
