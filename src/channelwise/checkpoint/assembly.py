"""From the files of the stages to a whole checkpoint, and into its place."""

import errno
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors import safe_open

from channelwise.checkpoint.disk import sync_one
from channelwise.checkpoint.shards import stored_sizes, write_index, write_shards

SINGLE_FILE = 512 * 2**20
"""Bytes of all stages up to which a checkpoint is one weight file, as small models are published."""

_NO_LINKS = (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


def gather_weights(files: Sequence[Path], folder: Path, single_file: int = SINGLE_FILE) -> None:
    """The weights of a checkpoint from the safetensors files of its stages, which stay as they are.

    Up to `single_file` bytes together they are written into one file, the one that `write_shards` writes of these
    tensors; beyond that every file becomes a shard, by a hard link where the file system has them. Raises ValueError if
    two files hold a tensor of the same name.
    """
    sizes = [stored_sizes(file) for file in files]
    _check_apart(files, sizes)
    if sum(file.stat().st_size for file in files) <= single_file:
        write_shards(dict(_tensors(files)), folder)
        return
    weight_map: dict[str, str] = {}
    for number, (file, tensors) in enumerate(zip(files, sizes, strict=True), 1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        _link(file, folder / name)
        weight_map.update(dict.fromkeys(tensors, name))
    write_index(folder, sum(sum(tensors.values()) for tensors in sizes), weight_map)


def put_in_place(model: Path, target: Path, replaced: Path) -> None:
    """Makes the folder `model` to `target`; what is there goes to `replaced`. May be called again after any end.

    An error or an interruption in between puts the old one back.
    """
    if not model.exists():
        return
    try:
        if target.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            target.rename(replaced)
        model.rename(target)
    except BaseException:
        put_back(replaced, target)
        raise
    sync_one(target.parent)


def put_back(replaced: Path, target: Path) -> None:
    """What was replaced takes its place again if nothing else is there."""
    if replaced.exists() and not target.exists():
        replaced.rename(target)


def _check_apart(files: Sequence[Path], sizes: Iterable[dict[str, int]]) -> None:
    owners: dict[str, Path] = {}
    for file, tensors in zip(files, sizes, strict=True):
        for name in tensors:
            if owners.setdefault(name, file) is not file:
                raise ValueError(f"{owners[name].name} and {file.name} both hold {name}")


def _tensors(files: Iterable[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of the files, mapped into memory."""
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 — no mapping
                yield name, opened.get_tensor(name)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copyfile(source, target)
