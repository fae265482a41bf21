"""What tells a model's files from others without reading them whole, and how two such fingerprints differ."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from channelwise.model.sources import read_json
from channelwise.model.stored import StoredTensor, header_digest

UNMEANT = ("_name_or_path", "transformers_version", "_commit_hash")
"""What a config says about where the model came from, not about what it is."""
PAGE = 4096
SAMPLED = 3
"""Pages of a tensor that are read; a smaller tensor is read whole."""
DIGITS = 16
"""Hexadecimal digits that are kept of each tensor's digest."""


def fingerprint(folder: Path, stored: Mapping[str, StoredTensor]) -> dict[str, Any]:
    """{"config": digest, "files": {name: {"bytes", "header": digest, "tensors": {name: digest of some pages}}}}."""
    files = {path.name: _file(path) for path in sorted({tensor.path for tensor in stored.values()})}
    for key, tensor in stored.items():
        files[tensor.path.name]["tensors"][key] = _sampled(key, tensor)
    return {"config": _config_digest(folder / "config.json"), "files": files}


def difference(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """In words, what differs between two fingerprints of one model, by file or tensor; None if nothing does."""
    before, after = earlier.get("files", {}), now["files"]
    for name in sorted({*before, *after}):
        if name not in after:
            return f"{name} is no longer a weight file of the model"
        if name not in before:
            return f"{name} was not a weight file of the model"
        told = _file_difference(name, before[name], after[name])
        if told:
            return told
    return None if earlier.get("config") == now["config"] else "config.json has changed"


def _file_difference(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    if before["bytes"] != after["bytes"]:
        return f"{name} has {after['bytes']} bytes and had {before['bytes']}"
    if before["header"] != after["header"]:
        return f"{name} holds other tensors"
    for key, digest in after["tensors"].items():
        if before["tensors"].get(key) != digest:
            return f"{key} in {name} has other values"
    return None


def _file(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "header": header_digest(path), "tensors": {}}


def _sampled(key: str, tensor: StoredTensor) -> str:
    digest = hashlib.sha256()
    for piece in tensor.pieces(_pages(key, tensor.size)):
        digest.update(piece)
    return digest.hexdigest()[:DIGITS]


def _pages(key: str, size: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of what is read of a tensor: all, or the first page and some that its name chooses."""
    if size <= SAMPLED * PAGE:
        yield 0, size
        return
    yield 0, PAGE
    chosen = hashlib.sha256(key.encode()).digest()
    for index in range(1, SAMPLED):
        number = int.from_bytes(chosen[8 * index : 8 * index + 8], "little")
        yield number % (size - PAGE), PAGE


def _config_digest(path: Path) -> str:
    return hashlib.sha256(json.dumps(_meant(read_json(path)), sort_keys=True).encode()).hexdigest()


def _meant(entry: Any) -> Any:
    """An entry of a config without what is not meant, at any depth."""
    if isinstance(entry, dict):
        return {name: _meant(value) for name, value in entry.items() if name not in UNMEANT}
    return entry
