"""Loading a model and its tokenizer, with everything that could be wrong with them found and told in one line."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils import logging

from channelwise.errors import InputError
from channelwise.model.blocks import find_blocks

DEMO = "demo"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)
DOWNLOADED = ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors")
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
    folder = _directory(str(path_or_name))
    config = _read_json(folder / "config.json")
    quantized = config.get("quantization_config") is not None
    if quantized and not allow_quantized:
        raise InputError(f"{path_or_name} is already quantized: give the original model")
    model_class = _model_class(config, folder)
    _check_files(folder)
    with _quiet():
        model = _load_weights(model_class, folder, dtype)
        tokenizer = _load_tokenizer(folder)
    _check_finite(model, folder)
    if not quantized:
        find_blocks(model)
    if tokenizer is not None:
        _check_tokenizer(model, tokenizer, folder)
    return model, tokenizer


def _directory(name: str) -> Path:
    """The directory that holds the model; a hub name is downloaded."""
    if name == DEMO:
        folder = Path(str(resources.files("channelwise").joinpath("bundled")))
        if not (folder / "config.json").is_file():
            raise InputError("the bundled model is not installed: reinstall channelwise, or give another model")
        return folder
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(f"{name} is not a model: it has no config.json; give a directory that transformers saved")
        return folder
    if folder.exists():
        raise InputError(f"{name} is a file, not a model directory; give the directory that holds config.json")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(f"there is no directory {name}; give a model directory, a hub name, or {DEMO}")
    return _download(name)


def _download(name: str) -> Path:
    try:
        folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=[*DOWNLOADED]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=[*DOWNLOADED, "pytorch_model*.bin"]))
    except (OSError, ValueError) as error:  # the hub's errors are all of these; not found, gated, offline
        raise InputError(f"neither a directory nor a model on the hub: {name} ({_one_line(error)})") from error
    if not (folder / "config.json").is_file():
        raise InputError(f"{name} on the hub is not a model for transformers: it has no config.json")
    return folder


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({_one_line(error)}): fetch the model again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object: fetch the model again")
    return content


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
        names = sorted({*names, *_read_json(index).get("weight_map", {}).values()})
    if not names and not any(folder.glob("pytorch_model*.bin")):
        raise InputError(f"{folder} holds no weights: there is no model.safetensors; fetch the model again")
    for name in names:
        path = folder / name
        if not path.is_file():
            raise InputError(f"{path} is missing, but {index.name} needs it: fetch the model again")
        try:
            with safe_open(path, framework="pt"):
                pass
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path} is cut short or damaged ({_one_line(error)}): fetch it again") from error


def _load_weights(model_class: Any, folder: Path, dtype: str | torch.dtype) -> nn.Module:
    try:
        model, info = model_class.from_pretrained(folder, dtype=dtype, output_loading_info=True, local_files_only=True)
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, ImportError) as error:
        raise InputError(f"{folder} cannot be loaded as {model_class.__name__}: {_one_line(error)}") from error
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
        raise InputError(f"the tokenizer in {folder} cannot be loaded: {_one_line(error)}") from error


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
    if not isinstance(embedding, nn.Embedding):
        return
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= embedding.num_embeddings:
        raise InputError(
            f"the tokenizer in {folder} does not belong to the model: it has token ids up to {largest}, "
            f"the model embeds {embedding.num_embeddings}"
        )


@contextmanager
def _quiet() -> Iterator[None]:
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


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "…"
