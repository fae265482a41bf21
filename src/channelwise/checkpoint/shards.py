"""The weights of a checkpoint as safetensors files: which tensors, in which files, and whether the files are whole."""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file

from channelwise.errors import InputError
from channelwise.model.loading import check_weight_file

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
LARGEST_SHARD = 4 * 10**9
"""Bytes."""


def checkpoint_tensors(model: Any) -> dict[str, torch.Tensor]:
    """The model's tensors under its own names, each with memory of its own; those that the config ties are left out."""
    tensors = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    for target, source in getattr(model, "all_tied_weights_keys", {}).items():
        if target in tensors and source in tensors and _is_same(tensors[target], tensors[source]):
            del tensors[target]
    owners: dict[int, str] = {}
    for name, tensor in tensors.items():
        is_first = owners.setdefault(tensor.data_ptr(), name) == name or tensor.numel() == 0
        tensors[name] = _own(tensor, is_first)
    return tensors


def write_shards(tensors: dict[str, torch.Tensor], folder: Path, largest: int = LARGEST_SHARD) -> int:
    """Writes the tensors into files of at most `largest` bytes, with an index if need be; returns the bytes of all."""
    split = split_torch_state_dict_into_shards(tensors, max_shard_size=largest)
    for file, names in split.filename_to_tensors.items():
        save_file({name: tensors[name] for name in names}, folder / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return sum((folder / file).stat().st_size for file in split.filename_to_tensors)


def check_shards(folder: Path) -> None:
    """Raises InputError, naming the file, if a weight file is missing, cut short or damaged."""
    for file in _shard_names(folder):
        path = folder / file
        if not path.is_file():
            raise InputError(f"{path} is missing: the checkpoint is not whole, copy or quantize it again")
        check_weight_file(path, "copy or quantize it again")


def _shard_names(folder: Path) -> list[str]:
    index = folder / INDEX_FILE
    if (folder / WEIGHTS_FILE).exists() or not index.exists():
        return [WEIGHTS_FILE]
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{index} is damaged: copy or quantize the checkpoint again") from error


def _is_same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.dtype == b.dtype


def _own(tensor: torch.Tensor, is_first: bool) -> torch.Tensor:
    """The tensor itself, or a copy where it is a view or not the first of its memory: safetensors writes none twice."""
    tensor = tensor.detach()
    filled = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    whole = is_first and filled and tensor.is_contiguous()
    return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)
