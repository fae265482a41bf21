"""Loading a model and its tokenizer, with everything that could be wrong with them found and told in one line."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils import logging

from channelwise.errors import InputError
from channelwise.model.blocks import find_blocks
from channelwise.model.sources import model_directory, one_line, read_json
from channelwise.runtime.embedding import QuantizedEmbedding

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)
NAMED = 3
"""How many of many missing tensors an error names."""


def load_model(
    path_or_name: str | Path, dtype: str | torch.dtype = "auto", *, allow_quantized: bool = False
) -> tuple[nn.Module, Any]:
    """A transformers model in evaluation mode, without gradients on the CPU; and its tokenizer or None.

    path_or_name: a model directory, a hub name, or "demo", the bundled model. dtype: as in transformers, "auto" is the
    one the weights were saved in. Raises InputError if it is no model, is damaged or incomplete, holds numbers that are
    not finite, has nothing to quantize, is already quantized (unless allowed), or has a tokenizer of another model.
    """
    folder = model_directory(str(path_or_name))
    config = read_json(folder / "config.json")
    quantized = config.get("quantization_config") is not None
    if quantized and not allow_quantized:
        raise InputError(f"{path_or_name} is already quantized: give the original model")
    model_class = _model_class(config, folder)
    _check_files(folder)
    with quiet():
        model = _load_weights(model_class, folder, dtype)
        tokenizer = _load_tokenizer(folder)
    _check_finite(model, folder)
    if not quantized:
        find_blocks(model)
    if tokenizer is not None:
        _check_tokenizer(model, tokenizer, folder)
    return model, tokenizer


def _model_class(config: dict[str, Any], folder: Path) -> Any:
    names = config.get("architectures")
    if not isinstance(names, list) or not names:
        raise InputError(
            f"{folder / 'config.json'} has no architectures: add the name of the model's transformers class"
        )
    model_class = getattr(transformers, str(names[0]), None)
    if not hasattr(model_class, "from_pretrained"):
        raise InputError(
            f"{folder / 'config.json'}: transformers {transformers.__version__} has no class {names[0]}; "
            "code from model repositories is not run"
        )
    return model_class


def _check_files(folder: Path) -> None:
    """Every weight file is there and whole."""
    index = folder / "model.safetensors.index.json"
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    if index.is_file():
        names = sorted({*names, *read_json(index).get("weight_map", {}).values()})
    if not names and not any(folder.glob("pytorch_model*.bin")):
        raise InputError(f"{folder} holds no weights: there is no model.safetensors; fetch the model again")
    for name in names:
        path = folder / name
        if not path.is_file():
            raise InputError(f"{path} is missing, but {index.name} needs it: fetch the model again")
        check_weight_file(path, "fetch it again")


def check_weight_file(path: Path, remedy: str) -> None:
    """Raises InputError, naming the safetensors file and what to do, if it is cut short or damaged."""
    try:
        with safe_open(path, framework="pt"):
            pass
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is cut short or damaged ({one_line(error)}): {remedy}") from error


def _load_weights(model_class: Any, folder: Path, dtype: str | torch.dtype) -> nn.Module:
    try:
        # Other shapes are not ignored: they are in the loading information, by name.
        model, info = model_class.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, local_files_only=True
        )
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, ImportError) as error:
        raise InputError(f"{folder} cannot be loaded as {model_class.__name__}: {one_line(error)}") from error
    # transformers would go on with random numbers in these.
    for problem, keys in (("lacks", info["missing_keys"]), ("has other shapes for", info["mismatched_keys"])):
        if keys:
            named = sorted(str(key[0]) if isinstance(key, tuple) else str(key) for key in keys)
            more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
            raise InputError(
                f"{folder} {problem} {', '.join(named[:NAMED])}{more}: it is no whole {model_class.__name__}"
            )
    loaded: nn.Module = model.eval().requires_grad_(False)
    return loaded


def _load_tokenizer(folder: Path) -> Any:
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception for a damaged file
        raise InputError(f"the tokenizer in {folder} cannot be loaded: {one_line(error)}") from error


def _check_finite(model: nn.Module, folder: Path) -> None:
    for name, tensor in model.named_parameters():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{folder}: {name} holds numbers that are not finite: the weights are damaged")


def _check_tokenizer(model: nn.Module, tokenizer: Any, folder: Path) -> None:
    """The tokenizer's largest id has a row in the embedding."""
    try:
        embedding = model.get_input_embeddings()  # type: ignore[operator]
    except (NotImplementedError, AttributeError):
        return
    if not isinstance(embedding, nn.Embedding | QuantizedEmbedding):
        return
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= embedding.num_embeddings:
        raise InputError(
            f"the tokenizer in {folder} does not belong to the model: it has token ids up to {largest}, "
            f"the model embeds {embedding.num_embeddings}"
        )


@contextmanager
def quiet() -> Iterator[None]:
    """transformers says nothing and shows no progress bars; as before afterwards."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
