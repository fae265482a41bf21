"""Loading a checkpoint: nothing of it is ever initialised at random."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers

from channelwise.checkpoint.format import QUANT_METHOD, from_config
from channelwise.checkpoint.plugin import register
from channelwise.checkpoint.shards import check_shards
from channelwise.errors import InputError
from channelwise.model.loading import lacks_a_pooler, quiet

TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json")
NAMED_KEYS = 3
"""How many missing tensors an error names."""


def load_checkpoint(directory: Path, dtype: str | torch.dtype = "auto") -> tuple[Any, Any]:
    """The model, in eval mode on the CPU, and its tokenizer or None.

    dtype: of what is not quantized; "auto" is the one it was saved in.
    Raises InputError if the directory holds no channelwise checkpoint, one of another format version, or one with
    missing, cut or damaged files or tensors.
    """
    folder = Path(directory)
    config = _read_config(folder)
    check_shards(folder)
    register()
    model = _load_model(_model_class(config, folder), folder, dtype)
    has_tokenizer = any((folder / name).is_file() for name in TOKENIZER_FILES)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True) if has_tokenizer else None
    return model, tokenizer


def is_checkpoint(directory: Path) -> bool:
    """Whether the directory's config.json says that it is a channelwise checkpoint, of any version."""
    try:
        config = json.loads((Path(directory) / "config.json").read_text(encoding="utf-8"))
        return bool(config["quantization_config"]["quant_method"] == QUANT_METHOD)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder} holds no checkpoint: there is no config.json")
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        quantization = config.get("quantization_config")
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path} is not valid JSON ({error}): copy or quantize the checkpoint again") from error
    if not isinstance(quantization, dict):
        raise InputError(f"{folder} is not a channelwise checkpoint: its config.json has no quantization_config")
    from_config(quantization, str(path))
    return config


def _model_class(config: dict[str, Any], folder: Path) -> Any:
    names = config.get("architectures") or ["none"]
    model_class = getattr(transformers, names[0], None)
    if model_class is None:
        raise InputError(f"{folder} needs the model class {names[0]}, which transformers does not have: update it")
    return model_class


def _load_model(model_class: Any, folder: Path, dtype: str | torch.dtype) -> Any:
    options = {"dtype": dtype, "output_loading_info": True, "local_files_only": True}
    try:
        with quiet():
            model, info = model_class.from_pretrained(folder, **options)
            if lacks_a_pooler(model_class, info["missing_keys"]):
                model, info = model_class.from_pretrained(folder, **options, add_pooling_layer=False)
    except (RuntimeError, ValueError, OSError) as error:
        line = str(error).strip().splitlines()
        raise InputError(f"{folder} cannot be loaded: {line[0] if line else type(error).__name__}") from error
    wrong = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if wrong:
        named = ", ".join(wrong[:NAMED_KEYS]) + (", …" if len(wrong) > NAMED_KEYS else "")
        raise InputError(f"{folder} lacks {len(wrong)} tensors ({named}): copy or quantize it again")
    return model
