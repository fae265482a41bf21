"""A model without its weights: parameters on the meta device, and the stream that they come from."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from channelwise.errors import InputError
from channelwise.model.conversion import generation_config, make_initial, without_values
from channelwise.model.loading import LOADING, built, check_files, model_class_of, quiet
from channelwise.model.sources import model_directory, read_json
from channelwise.model.stored import StoredTensor, stored_tensors, weight_files
from channelwise.model.streaming import WeightStream
from channelwise.model.tokenizers import check_tokenizer, load_tokenizer

ADAPTER_FILE = "adapter_config.json"
"""With it, transformers puts other weights over the model's."""


def can_stream(folder: Path) -> bool:
    """Whether a model's directory holds its weights as safetensors, alone; other models are loaded whole."""
    return bool(weight_files(folder)) and not (folder / ADAPTER_FILE).is_file()


def open_skeleton(path_or_name: str | Path, dtype: str | torch.dtype = "auto") -> tuple[nn.Module, Any, WeightStream]:
    """A transformers model in evaluation mode without weights, its tokenizer or None, and the stream of its weights.

    Parameters and persistent buffers are on the meta device, in their working dtypes; other buffers (rotary
    frequencies, say) hold their values. path_or_name and dtype: as in `load_model`. Raises its InputErrors; which
    tensors are missing or have other shapes is found from the files' headers. Raises NotStreamableError if the model's
    weights cannot be taken part by part.
    """
    folder = model_directory(str(path_or_name))
    config = read_json(folder / "config.json")
    if config.get("quantization_config") is not None:
        raise InputError(f"{path_or_name} is already quantized: give the original model")
    model_class = model_class_of(config, folder)
    check_files(folder)
    stored = stored_tensors(weight_files(folder))
    if not stored:
        raise InputError(f"{folder} holds no safetensors that can be streamed: load the model whole")
    with quiet():
        model = built(model_class, folder, partial(_on_meta, model_class, folder, stored, dtype))
        make_initial(model, without_values(model))
        tokenizer = load_tokenizer(folder)
    stream = WeightStream(model, folder, stored)
    if tokenizer is not None:
        check_tokenizer(model, tokenizer, folder)
    return model, tokenizer, stream


def _on_meta(
    model_class: Any, folder: Path, stored: dict[str, StoredTensor], dtype: str | torch.dtype, **more: Any
) -> tuple[Any, dict[str, Any]]:
    """from_pretrained with tensors that have shapes and dtypes only, so that all of its rules apply."""
    config = model_class.config_class.from_pretrained(folder, local_files_only=True)
    tensors = {name: tensor.on_meta() for name, tensor in stored.items()}
    model, info = model_class.from_pretrained(
        None, config=config, state_dict=tensors, dtype=dtype, device_map="meta", **LOADING, **more
    )
    model.name_or_path = model.config.name_or_path = str(folder)
    if model.can_generate():
        model.generation_config = generation_config(folder)
    return model, info
