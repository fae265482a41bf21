"""Weights put into a skeleton part by part, and taken out again."""

import ctypes
import hashlib
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from channelwise.errors import InputError, NotStreamableError
from channelwise.model import fingerprint
from channelwise.model.blocks import find_blocks
from channelwise.model.conversion import Deferred, make_initial, put_in_place, targets_of, tie, tied_names
from channelwise.model.loading import check_finite, quiet
from channelwise.model.mapping import mapped
from channelwise.model.stored import StoredTensor

OUTSIDE = ""
"""The name of the part that is below no block."""


class WeightStream:
    """The weights of one skeleton. A part is a module by its full name, or "": everything that is below no block.

    total_bytes: of all parameters and persistent buffers, in their working dtypes.
    """

    total_bytes: int

    def __init__(self, model: nn.Module, folder: Path, stored: dict[str, StoredTensor]) -> None:
        """model: as `open_skeleton` makes it; stored: the tensors of its files.

        Raises InputError if it has no blocks, NotStreamableError if weights of different parts are tied.
        """
        self._model, self._folder, self._stored = model, folder, stored
        self._blocks = find_blocks(model)
        self._entries = model.state_dict(keep_vars=True)
        self._targets = targets_of(model, stored, self._entries)
        self._modules = {name: _Module.of(module) for name, module in model.named_modules(remove_duplicate=False)}
        self.total_bytes = _bytes(self._entries.values())
        for target, source in tied_names(model).items():
            if self._part_of(target) != self._part_of(source):
                raise NotStreamableError(
                    f"{folder}: {target} is tied to {source} outside of its block, so that it cannot be streamed: "
                    "load the model whole"
                )

    def load(self, name: str) -> None:
        """Puts the weights of a part in place, as from_pretrained would: parameters and persistent buffers.

        The part is first made what it was in the skeleton. What is stored as it is needed is a view of its file's
        private mapping, so that its pages are read when they are used. Raises InputError, and leaves the part as it
        was in the skeleton, if the files no longer hold it or a parameter has numbers that are not finite.
        """
        entries = self._below(name)
        self._restore(name)
        try:
            with quiet():
                self._place(name, entries)
                tie(self._model, entries, self._on_meta(entries))
                make_initial(self._model, self._on_meta(entries))
            parameters = [(entry, self._tensor(entry)) for entry in entries if _is_parameter(self._entries[entry])]
            for _, parameter in parameters:
                parameter.requires_grad_(False)
            check_finite(parameters, self._folder)
        except BaseException:
            self.release(name)
            raise

    def release(self, name: str) -> None:
        """Makes a part what it was in the skeleton, its modules included, and gives its memory back to the system."""
        self._restore(name)
        _give_back()

    def digest(self, name: str) -> str:
        """sha256 over the names, dtypes, shapes and bytes of a part's tensors as they are stored."""
        digest = hashlib.sha256()
        for key in sorted(self._keys(name)):
            tensor = self._stored[key]
            digest.update(f"{key} {tensor.dtype} {tensor.shape}\n".encode())
            for piece in tensor.pieces():
                digest.update(piece)
        return digest.hexdigest()

    def fingerprint(self) -> dict[str, Any]:
        """What tells this model's files from others, as data for JSON: cheap, for it reads only samples of the bytes.

        A change of a few values in a large tensor may be missed; `digest` misses none.
        """
        return fingerprint.fingerprint(self._folder, self._stored)

    def changed(self, earlier: dict[str, Any]) -> str | None:
        """What differs from an earlier fingerprint, by the name of the file or tensor; None if nothing does."""
        return fingerprint.difference(earlier, self.fingerprint())

    def bytes_of(self, name: str) -> int:
        """Bytes of a part's parameters and persistent buffers in their working dtypes; what is tied counts once."""
        return _bytes(self._below(name).values())

    def _place(self, name: str, entries: dict[str, torch.Tensor]) -> None:
        as_stored, groups = self._grouped(name)
        for keys in groups:
            self._put(entries, {key: self._read_later(key) for key in keys})
        if as_stored:
            self._put(entries, mapped({key: self._stored[key] for key in as_stored}))

    def _put(self, entries: dict[str, torch.Tensor], tensors: dict[str, Any]) -> None:
        problem = put_in_place(self._model, entries, tensors)
        if problem:
            raise InputError(f"{self._folder}: {problem}: it is no whole {type(self._model).__name__}")

    def _read_later(self, key: str) -> Deferred:
        dtype = self._entries[self._targets[key].name].dtype
        return Deferred(lambda: self._stored[key].read(dtype))

    def _grouped(self, name: str) -> tuple[list[str], list[list[str]]]:
        """The part's keys: those to be taken as they are stored; and the others, by what they become, largest first.

        One group after the other is read, so that only one stands in memory twice.
        """
        as_stored: list[str] = []
        groups: dict[str, list[str]] = {}
        for key in self._keys(name):
            target = self._targets[key]
            if target.is_converted or self._stored[key].dtype != self._entries[target.name].dtype:
                groups.setdefault(target.name, []).append(key)
            else:
                as_stored.append(key)
        by_size = sorted(groups.values(), key=lambda keys: -sum(self._stored[key].size for key in keys))
        return as_stored, by_size

    def _keys(self, name: str) -> list[str]:
        """The checkpoint's tensors that a part is made of."""
        is_within = self._within(name)
        return [key for key, target in self._targets.items() if is_within(target.name)]

    def _below(self, name: str) -> dict[str, torch.Tensor]:
        """A part's parameters and persistent buffers in the skeleton, by their full names."""
        is_within = self._within(name)
        return {entry: tensor for entry, tensor in self._entries.items() if is_within(entry)}

    def _within(self, name: str) -> Callable[[str], bool]:
        """Tells of full names whether they are in a part. Raises ValueError if there is no such module."""
        if name not in self._modules:
            raise ValueError(f"{type(self._model).__name__} has no module {name}")
        if name == OUTSIDE:
            return lambda entry: self._part_of(entry) == OUTSIDE
        return lambda entry: entry.startswith(f"{name}.")

    def _part_of(self, entry: str) -> str:
        """The block that a name is in, or OUTSIDE."""
        rest = entry.removeprefix(f"{self._blocks.prefix}.")
        return f"{self._blocks.prefix}.{rest.partition('.')[0]}" if rest != entry else OUTSIDE

    def _tensor(self, entry: str) -> torch.Tensor:
        owner, _, leaf = entry.rpartition(".")
        tensor: torch.Tensor = getattr(self._model.get_submodule(owner), leaf)
        return tensor

    def _on_meta(self, entries: Iterable[str]) -> list[str]:
        return [entry for entry in entries if self._tensor(entry).is_meta]

    def _restore(self, name: str) -> None:
        """Every module of a part gets the children, parameters and buffers that it had in the skeleton."""
        is_within = self._within(name)
        for own, module in self._modules.items():
            # The list of the blocks is outside of them; who stands in it is theirs.
            if own == name or (is_within(own) and own != self._blocks.prefix):
                module.restore()
        if name != OUTSIDE:
            parent, _, leaf = name.rpartition(".")
            self._model.get_submodule(parent)._modules[leaf] = self._modules[name].module


@dataclass(frozen=True)
class _Module:
    """A module and what stands in it."""

    module: nn.Module
    children: dict[str, nn.Module | None]
    parameters: dict[str, nn.Parameter | None]
    buffers: dict[str, torch.Tensor | None]

    @staticmethod
    def of(module: nn.Module) -> "_Module":
        return _Module(module, dict(module._modules), dict(module._parameters), dict(module._buffers))

    def restore(self) -> None:
        """Puts back into the module what stood in it."""
        for present, before in (
            (self.module._modules, self.children),
            (self.module._parameters, self.parameters),
            (self.module._buffers, self.buffers),
        ):
            present.clear()
            present.update(before)  # type: ignore[arg-type]


def _is_parameter(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, nn.Parameter)


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in tensors}.values())


def _give_back() -> None:
    """Asks the C library to hand freed memory to the system; where it cannot, it is reused."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
