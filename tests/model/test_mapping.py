"""Single tensors of safetensors files are mapped or read, however large the file is and wherever they lie."""

import json
import struct
from pathlib import Path

import pytest
import torch

from channelwise.model.mapping import mapped
from channelwise.model.stored import StoredTensor, stored_tensors


def write_safetensors(path: Path, sizes: dict[str, int], padding: int = 0) -> None:
    """int16 tensors of zeros whose data begins `padding` bytes off; the file takes no room on disk."""
    header, end = {}, 0
    for name, size in sizes.items():
        header[name] = {"dtype": "I16", "shape": [size // 2], "data_offsets": [end, end + size]}
        end += size
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8 + padding)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + end)


def test_a_tensor_of_a_file_larger_than_any_memory_is_mapped_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.safetensors"
    write_safetensors(path, {"first": 2**20, "large": 2**42, "last": 2**20})
    stored = stored_tensors([path])
    with path.open("r+b") as file:
        file.seek(stored["last"].start)
        file.write(b"\x07\x00")
    with monkeypatch.context() as patched:
        patched.setattr(StoredTensor, "read", None)  # what cannot be mapped would be read
        views = mapped({name: stored[name] for name in ("first", "last")})
    assert views["first"].count_nonzero() == 0
    assert views["last"][0] == 7 and views["last"].count_nonzero() == 1
    assert torch.equal(stored["last"].read(torch.float32), views["last"].float())


def test_tensors_that_lie_askew_are_read_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "askew.safetensors"
    write_safetensors(path, {"a": 6, "empty": 0, "b": 4}, padding=1)
    whole = path.read_bytes()
    path.write_bytes(whole[:-4] + struct.pack("<hh", 5, -6))
    views = mapped(stored_tensors([path]))
    assert views["a"].tolist() == [0, 0, 0] and views["b"].tolist() == [5, -6] and views["empty"].shape == (0,)


def test_a_small_tensor_does_not_keep_the_mapping_of_a_large_one(tmp_path: Path) -> None:
    path = tmp_path / "neighbours.safetensors"
    write_safetensors(path, {"large": 2**20, "norm": 2**13})
    views = mapped(stored_tensors([path]))
    assert views["norm"].untyped_storage().nbytes() == 2**13
    assert views["large"].untyped_storage().nbytes() >= 2**20
