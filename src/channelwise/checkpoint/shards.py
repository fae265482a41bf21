"""The weights of a checkpoint as safetensors files: which tensors, in which files, and whether the files are whole."""

import json
import struct
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory, split_torch_state_dict_into_shards
from safetensors.torch import save_file

from channelwise.checkpoint.disk import sync_one
from channelwise.errors import InputError
from channelwise.model.loading import check_weight_file

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
LARGEST_SHARD = 4 * 10**9
"""Bytes."""
_METADATA = {"format": "pt"}


def checkpoint_tensors(model: Any) -> dict[str, torch.Tensor]:
    """The model's tensors under its own names, each in its own storage; those that the config ties are left out."""
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
        _save({name: tensors[name] for name in names}, folder / file)
    if split.is_sharded:
        write_index(folder, split.metadata["total_size"], split.tensor_to_filename)
    return sum((folder / file).stat().st_size for file in split.filename_to_tensors)


def write_index(folder: Path, total_size: int, weight_map: dict[str, str]) -> None:
    """The index of several weight files. total_size: bytes of all tensors; weight_map: each one's file."""
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def pieces_of(tensors: dict[str, torch.Tensor], largest: int) -> list[dict[str, torch.Tensor]]:
    """The tensors in their order, cut into pieces of at most `largest` bytes; a larger tensor is a piece of its own."""
    split = split_state_dict_into_shards_factory(
        tensors,
        get_storage_size=lambda tensor: tensor.numel() * tensor.element_size(),
        filename_pattern="{suffix}",
        max_shard_size=largest,
    )
    return [{name: tensors[name] for name in names} for names in split.filename_to_tensors.values()]


def write_weight_file(tensors: dict[str, torch.Tensor], path: Path) -> int:
    """One weight file, on the disk and whole before it has its name; returns its bytes.

    Tensors may be views and may share memory; what has to be copied for that goes again. The file is
    safetensors' own, so the same tensors give the same bytes in any order.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        _save(_apart(tensors), partial)
        sync_one(partial)
        size = partial.stat().st_size
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return size


def stored_sizes(path: Path) -> dict[str, int]:
    """The bytes of every tensor of a safetensors file, from its header."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    offsets = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
    return {name: stop - start for name, (start, stop) in offsets.items()}


def check_shards(folder: Path) -> None:
    """Raises InputError, naming the file, if a weight file is missing, cut short or damaged."""
    for file in _shard_names(folder):
        path = folder / file
        if not path.is_file():
            raise InputError(f"{path} is missing: the checkpoint is not whole, copy or quantize it again")
        check_weight_file(path, "copy or quantize it again")


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    save_file(tensors, path, metadata=_METADATA)
    # safetensors makes files for their owner alone; these are for whom the directory is.
    path.chmod(path.parent.stat().st_mode & 0o666)


def _apart(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors, contiguous and each with memory of its own, as safetensors wants them."""
    owners: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        owner = tensor.untyped_storage().data_ptr()
        is_shared = owner in owners and tensor.numel() > 0
        owners.add(owner)
        apart[name] = tensor.detach().contiguous()
        if is_shared and apart[name].data_ptr() == tensor.data_ptr():
            apart[name] = apart[name].clone()
    return apart


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
    """The tensor in a storage of its own: safetensors writes none twice, and nothing that lies within another's.

    That copies only what is not the first of its memory, or not contiguous. A part of a mapped file stays there.
    """
    tensor = tensor.detach()
    if not is_first or not tensor.is_contiguous():
        return tensor.clone(memory_format=torch.contiguous_format)
    if tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size():
        return tensor
    if tensor.device.type != "cpu":
        return tensor.clone()
    # By way of an array of bytes, which takes just this memory for its storage.
    return torch.from_numpy(tensor.view(-1).view(torch.uint8).numpy()).view(tensor.dtype).view(tensor.shape)
