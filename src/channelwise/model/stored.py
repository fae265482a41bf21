"""The tensors of safetensors files, found by their headers alone; each is read by itself."""

import hashlib
import io
import json
import math
import mmap
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from channelwise.errors import InputError
from channelwise.model.sources import read_json

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}
LENGTH_BYTES = 8
"""What a file begins with: the length of its header, little endian."""
PIECE = 4 * 2**20
"""Bytes that are read at once, and the least that a mapping of its own is made for."""


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies: its file, its dtype and shape, and its `size` bytes from `start` on."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    size: int

    @property
    def end(self) -> int:
        """The byte behind its last."""
        return self.start + self.size

    def on_meta(self) -> torch.Tensor:
        """A tensor of its dtype and shape without data."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")

    def read(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Its values in memory of their own, in another dtype if one is given. Raises InputError for a shorter file."""
        target = dtype or self.dtype
        memory = _own_memory(math.prod(self.shape) * target.itemsize)
        if target == self.dtype:
            self._read_into(memory)
            return memory.view(target).view(self.shape)
        values, filled = memory.view(target), 0
        for piece in self.pieces():
            stored = torch.frombuffer(bytearray(piece), dtype=self.dtype)
            values[filled : filled + stored.numel()].copy_(stored)
            filled += stored.numel()
        return values.view(self.shape)

    def pieces(self, offsets: Iterator[tuple[int, int]] | None = None) -> Iterator[bytes]:
        """Its bytes, some MiB at a time; or only those of the given (offset, length), counted from its start."""
        parts = offsets or ((begin, min(PIECE, self.size - begin)) for begin in range(0, self.size, PIECE))
        with self._opened() as file:
            for begin, length in parts:
                file.seek(self.start + begin)
                piece = file.read(length)
                if len(piece) < length:
                    raise _shortened(self.path)
                yield piece

    def _read_into(self, memory: torch.Tensor) -> None:
        view, filled = memoryview(memory.numpy().data), 0
        with self._opened() as file:
            file.seek(self.start)
            while filled < self.size and (count := file.readinto(view[filled:])):
                filled += count
        if filled < self.size:
            raise _shortened(self.path)

    @contextmanager
    def _opened(self) -> Iterator[io.BufferedReader]:
        """Its file, which still reaches to its end."""
        with self.path.open("rb") as file:
            check_end(file.fileno(), self)
            yield file


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files that transformers takes a model's weights from, in its order; none if there are none."""
    if (folder / WEIGHTS_FILE).is_file():
        return (folder / WEIGHTS_FILE,)
    if (folder / INDEX_FILE).is_file():
        names = set(read_json(folder / INDEX_FILE).get("weight_map", {}).values())
        return tuple(folder / name for name in sorted(names))
    return ()


def header_digest(path: Path) -> str:
    """sha256 over a whole file's header, which names its tensors, their dtypes, shapes and places."""
    return hashlib.sha256(_header_bytes(path)).hexdigest()


def stored_tensors(paths: Sequence[Path]) -> dict[str, StoredTensor]:
    """The tensors of several whole files, file by file and by name in each; of two of one name the later counts.

    Raises InputError for a dtype that is not known.
    """
    tensors: dict[str, StoredTensor] = {}
    for path in paths:
        tensors |= _stored_tensors(path)
    return tensors


def _stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of a whole file, by name. Raises InputError for a dtype that is not known."""
    raw = _header_bytes(path)
    data = LENGTH_BYTES + len(raw)
    header = json.loads(raw)
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in sorted(header.items()):
        if entry["dtype"] not in DTYPES:
            raise InputError(f"{path}: {name} is stored as {entry['dtype']}, which cannot be read: convert the model")
        begin, end = entry["data_offsets"]
        tensors[name] = StoredTensor(path, DTYPES[entry["dtype"]], tuple(entry["shape"]), data + begin, end - begin)
    return tensors


def _own_memory(size: int) -> torch.Tensor:
    """Bytes that go back to the system at once when they are no longer used, rather than to the heap."""
    if size < PIECE:
        return torch.empty(size, dtype=torch.uint8)
    return torch.frombuffer(mmap.mmap(-1, size, access=mmap.ACCESS_COPY), dtype=torch.uint8)


def check_end(descriptor: int, stored: StoredTensor) -> None:
    """Raises InputError unless the open file still reaches to the tensor's end.

    Touching a mapping behind a file's end would kill the process.
    """
    if os.fstat(descriptor).st_size < stored.end:
        raise _shortened(stored.path)


def _shortened(path: Path) -> InputError:
    return InputError(f"{path} is cut short or damaged (it was changed while it was read): fetch it again")


def _header_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(LENGTH_BYTES))
        return file.read(length)
