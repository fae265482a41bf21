"""Answers of a sequence or image classifier: their accuracy, and their agreement with the original's."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from channelwise.errors import InputError, NumericalError
from channelwise.model.batches import accepted, grouped_by_length, try_images
from channelwise.model.pixels import Pixels, reads_images
from channelwise.runtime.widening import in_wide_products

IMAGES_AT_ONCE = 32
NAMED = 5
"""How many of a model's labels an error names."""


@dataclass(frozen=True)
class Answers:
    """The likeliest class of each item, int64 [items]; tokens read, 0 for images; wall time in seconds."""

    classes: torch.Tensor
    tokens: int
    seconds: float


@dataclass(frozen=True, eq=False)
class Examples:
    """What to classify, and the right answers.

    inputs: ids int64 [tokens] of each sentence, or images. labels: int64 [items], of `count` classes. original: the
    floating-point model's answers to agree with, int64 [items], None without one.
    """

    inputs: tuple[torch.Tensor, ...] | Pixels
    labels: torch.Tensor
    count: int
    original: torch.Tensor | None = None

    def against(self, model: torch.nn.Module) -> "Examples":
        """The same with this model's answers as the original's. Raises InputError where it classifies other things."""
        if reads_images(model) not in (None, isinstance(self.inputs, Pixels)):
            kind = "images" if isinstance(self.inputs, Pixels) else "texts"
            raise InputError(
                f"{type(model).__name__} reads no {kind}; --against must name the model's own floating-point original"
            )
        count = class_count(model, self.inputs)
        if count != self.count:
            raise InputError(
                f"answers of {self.count} classes cannot be compared with {count}; "
                f"--against must name the model's own floating-point original"
            )
        return replace(self, original=classify(model, self.inputs).classes)


@in_wide_products
@torch.no_grad()
def classify(model: torch.nn.Module, inputs: tuple[torch.Tensor, ...] | Pixels) -> Answers:
    """Argmax of the logits [items, classes], the first of equal ones.

    Sentences of equal length share a batch, so there is no padding; images are decoded a batch at a time. Raises
    InputError for an image that cannot be read, NumericalError where logits are not finite.
    """
    started = time.perf_counter()
    was_training = model.training
    model.eval()
    if isinstance(inputs, Pixels):
        classes, tokens = _of_images(model, inputs), 0
    else:
        classes, tokens = _of_sentences(model, inputs), sum(map(len, inputs))
    model.train(was_training)
    return Answers(classes, tokens, time.perf_counter() - started)


def share_of_equal(answers: torch.Tensor, others: torch.Tensor) -> float:
    """Of two int64 [items]: the accuracy where `others` are labels, the agreement where they are answers."""
    return (answers == others).double().mean().item()


def class_count(model: torch.nn.Module, inputs: tuple[torch.Tensor, ...] | Pixels) -> int:
    """How many classes the model tells apart, after a try on one item.

    Raises InputError unless it gives logits [items, classes] of at least two classes.
    """
    name, config = type(model).__name__, getattr(model, "config", None)
    outputs = try_images(model, inputs.take([0])) if isinstance(inputs, Pixels) else _try_sentence(model, inputs)
    logits = getattr(outputs, "logits", None)
    declared = getattr(config, "num_labels", None)
    is_choice = isinstance(logits, torch.Tensor) and logits.ndim == 2 and declared in (None, logits.shape[1])
    if not is_choice:
        kind = "image" if isinstance(inputs, Pixels) else "sequence"
        raise InputError(f"{name} is no {kind} classifier; give a model that was saved with such a head")
    count = int(outputs.logits.shape[1])
    if count < 2 or getattr(config, "problem_type", None) in ("regression", "multi_label_classification"):
        raise InputError(f"{name} does not choose one of several classes, so it has no accuracy; give one that does")
    return count


def class_numbers(
    labels: Sequence[str], model: torch.nn.Module, count: int, source: str, place: Callable[[int], str]
) -> torch.Tensor:
    """The class of each label, int64 [items], of `count` classes.

    A label is a name in the model's config.id2label, in the same letters or else regardless of case, or the number of
    a class, from 0. Raises InputError, with place(index), for one that names no class, or several.
    """
    names = _class_names(model, count)
    exact, folded = _unique(names), _unique([name.casefold() for name in names])
    numbers = {str(number): number for number in range(count)}
    found = [exact.get(label, folded.get(label.casefold(), numbers.get(label))) for label in labels]
    unknown = [index for index, number in enumerate(found) if number is None]
    if unknown:
        label, more = labels[unknown[0]], f", … {len(names) - NAMED} more" if len(names) > NAMED else ""
        known = "no label" if label.casefold() not in map(str.casefold, names) else "several labels like"
        raise InputError(
            f"{source}, {place(unknown[0])}: the model has {known} {label!r} "
            f"(it has: {', '.join(names[:NAMED])}{more}); give one of these, or its number, 0 to {count - 1}"
        )
    return torch.tensor(found, dtype=torch.int64)


def _class_names(model: torch.nn.Module, count: int) -> list[str]:
    """Names of the classes in order; a class without one is called by its number."""
    names: Any = getattr(getattr(model, "config", None), "id2label", None) or {}
    return [str(names.get(number, number)) for number in range(count)]


def _unique(names: Sequence[str]) -> dict[str, int]:
    """The number of each name that only one class has."""
    times = Counter(names)
    return {name: number for number, name in enumerate(names) if times[name] == 1}


def _of_sentences(model: torch.nn.Module, sentences: Sequence[torch.Tensor]) -> torch.Tensor:
    classes = torch.empty(len(sentences), dtype=torch.int64)
    rows_at_once = _rows_at_once(model, len(sentences))
    for group, places in grouped_by_length(sentences):
        for start in range(0, len(group), rows_at_once):
            ids = torch.stack(group[start : start + rows_at_once])
            classes[places[start : start + rows_at_once]] = _likeliest(_sentence_outputs(model, ids).logits)
    return classes


def _rows_at_once(model: torch.nn.Module, most: int) -> int:
    """Without a padding token, decoders' heads refuse more than one sentence: they look for the last that is none."""
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    return most if getattr(config, "pad_token_id", None) is not None else 1


def _of_images(model: torch.nn.Module, pixels: Pixels) -> torch.Tensor:
    batches = ({"pixel_values": batch} for batch in pixels.batches(IMAGES_AT_ONCE))
    return torch.cat([_likeliest(model(**accepted(model, batch)).logits) for batch in batches])


def _likeliest(logits: torch.Tensor) -> torch.Tensor:
    """int64 [B], on the CPU, of [B, classes]."""
    if not torch.isfinite(logits).all():
        raise NumericalError("the model's logits are not finite; its weights are damaged or its dtype overflows")
    return logits.argmax(dim=-1).cpu()


def _sentence_outputs(model: torch.nn.Module, ids: torch.Tensor) -> Any:
    """For ids [B, T]."""
    return model(**accepted(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}))


@in_wide_products
@torch.no_grad()
def _try_sentence(model: torch.nn.Module, sentences: Sequence[torch.Tensor]) -> Any:
    try:
        return _sentence_outputs(model, min(sentences, key=len)[None])
    except (ValueError, RuntimeError, TypeError):
        return None  # it takes something else than sentences
