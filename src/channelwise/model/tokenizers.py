"""The tokenizer beside a model: found in its directory, read, and checked against the model."""

import importlib.util
from pathlib import Path
from typing import Any

import transformers
from torch import nn

from channelwise.errors import InputError
from channelwise.model.sources import one_line
from channelwise.runtime.embedding import QuantizedEmbedding

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "spm.model",
)
FOLDERS = ("", "tokenizer")
"""Beside the model, or in a folder of its own, as processors of several parts keep it."""
SENTENCEPIECE = ("sentencepiece", "google.protobuf")
"""The packages that transformers reads a .model file with."""


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a model's directory, or None. Raises InputError if it is damaged, or needs a missing package."""
    places = (folder / name for name in FOLDERS)
    place = next((place for place in places if any((place / name).is_file() for name in TOKENIZER_FILES)), None)
    if place is None:
        return None
    try:
        return transformers.AutoTokenizer.from_pretrained(place, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception for a damaged file
        pieces = [name for name in TOKENIZER_FILES if name.endswith(".model") and (place / name).is_file()]
        if pieces and not all(map(_is_installed, SENTENCEPIECE)):
            advice = "`pip install sentencepiece protobuf`"
            raise InputError(f"{place / pieces[0]} is read by sentencepiece: {advice}") from error
        raise InputError(f"the tokenizer in {place} cannot be loaded: {one_line(error)}") from error


def check_tokenizer(model: nn.Module, tokenizer: Any, folder: Path) -> None:
    """Raises InputError unless every id of the tokenizer's vocabulary has a row in the model's embedding.

    Tokens that were added behind the vocabulary need none: Gemma 3's text models have no row for an image. A text that
    holds one is refused when it is read.
    """
    try:
        embedding = model.get_input_embeddings()  # type: ignore[operator]
    except (NotImplementedError, AttributeError):
        return
    if not isinstance(embedding, nn.Embedding | QuantizedEmbedding):
        return
    added = tokenizer.get_added_vocab()
    largest = max((id for token, id in tokenizer.get_vocab().items() if token not in added), default=-1)
    if largest >= embedding.num_embeddings:
        raise InputError(
            f"the tokenizer in {folder} does not belong to the model: it has token ids up to {largest}, "
            f"the model embeds {embedding.num_embeddings}"
        )


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False
