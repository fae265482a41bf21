"""Entries come back as they were written, or not at all."""

import json
import os
from pathlib import Path

import pytest

from channelwise.comparison.cache import Cache, opened_cache, user_cache
from channelwise.errors import InputError

ENTRY = {"results": {"perplexity": 0.1 + 0.2, "tokens": 3, "none": None}, "layers": [{"name": "ö"}]}
KEY = "a" * 64


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "runs")


def test_what_was_written_is_read(cache: Cache) -> None:
    assert cache.read(KEY) is None
    cache.write(KEY, ENTRY)
    assert cache.read(KEY) == ENTRY
    assert cache.read("b" * 64) is None
    cache.write(KEY, {"other": 1})
    assert cache.read(KEY) == {"other": 1}
    assert [path.name for path in cache.folder.iterdir()] == [f"{KEY}.json"]


def damaged(text: str) -> list[str | bytes]:
    stored = json.loads(text)
    return [
        "",
        text[: len(text) // 2],
        text.replace("0.3", "0.4"),
        "[]",
        "null",
        json.dumps({**stored, "key": "b" * 64}),
        json.dumps({"entry": ENTRY}),
        b"\xff\xfe\x00",
    ]


@pytest.mark.parametrize("number", range(8))
def test_a_damaged_entry_is_not_there_and_is_written_anew(cache: Cache, number: int) -> None:
    cache.write(KEY, ENTRY)
    path = cache.folder / f"{KEY}.json"
    content = damaged(path.read_text())[number]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert cache.read(KEY) is None
    cache.write(KEY, ENTRY)
    assert cache.read(KEY) == ENTRY


def test_an_interrupted_write_leaves_what_was_there(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write(KEY, ENTRY)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.write(KEY, {"other": 1})
    assert cache.read(KEY) == ENTRY
    assert len(list(cache.folder.iterdir())) == 1


def test_a_folder_is_made_where_there_is_none(tmp_path: Path) -> None:
    assert opened_cache(None) is None
    found = opened_cache(tmp_path / "a" / "b")
    assert found == Cache(tmp_path / "a" / "b") and found.folder.is_dir()


def test_a_folder_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--cache .*file cannot be made"):
        opened_cache(tmp_path / "file")
    # Tests may run as root, to whom every directory is writable.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match="not writable"):
        opened_cache(tmp_path)


def test_the_users_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert user_cache() == tmp_path / "xdg" / "channelwise"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert user_cache() == tmp_path / "home" / ".cache" / "channelwise"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert user_cache() is None
