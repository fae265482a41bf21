"""What a run depends on, and what it says of its finished stages, line by line."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from channelwise.checkpoint.identity import differences, digest, told
from channelwise.checkpoint.journal import (
    FinishedStage,
    append_assembled,
    append_stage,
    begin_journal,
    cut_journal,
    read_journal,
)
from channelwise.errors import InputError

IDENTITY = {"recipe": {"weights": {"bits": 4}}, "samples": 128}
FIRST = FinishedStage(0, "layers.0", ("stages/a.safetensors",), 10, "d1", {"loss": 0.1, "line": "a\nb “é”"})
SECOND = FinishedStage(1, "", (), 0, "d2", {})


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    path = tmp_path / "journal.jsonl"
    begin_journal(path, IDENTITY)
    append_stage(path, FIRST)
    append_stage(path, SECOND)
    return path


def test_what_was_written_is_read(journal: Path) -> None:
    found = read_journal(journal)
    assert found is not None
    assert (found.identity, found.stages, found.is_assembled) == (IDENTITY, (FIRST, SECOND), False)
    assert found.length == journal.stat().st_size
    append_assembled(journal)
    found = read_journal(journal)
    assert found is not None and found.is_assembled and found.stages == (FIRST, SECOND)


def test_every_stage_is_one_line(journal: Path) -> None:
    assert len(journal.read_text().splitlines()) == 3


def test_no_journal_and_no_whole_first_line_are_none(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    assert read_journal(path) is None
    for text in ("", '{"version": 1, "iden'):
        path.write_text(text)
        assert read_journal(path) is None


def test_a_last_line_cut_anywhere_is_left_out_and_cut_off(journal: Path) -> None:
    whole = journal.read_bytes()
    kept = whole[: whole.rindex(b"\n", 0, -1) + 1]
    for length in range(len(kept), len(whole)):
        journal.write_bytes(whole[:length])
        found = read_journal(journal)
        assert found is not None and found.stages == (FIRST,)
        cut_journal(journal, found.length)
        assert journal.read_bytes() == kept


def test_zeros_after_a_power_failure_are_no_line(journal: Path) -> None:
    with journal.open("ab") as file:
        file.write(b"\0" * 100 + b"\n")
    found = read_journal(journal)
    assert found is not None and found.stages == (FIRST, SECOND)


@pytest.mark.parametrize("damage", ['{"stage": 3}', "{", '{"stage": {"index": 0}}', "[]"])
@pytest.mark.parametrize("line", [1, 2])
def test_a_damaged_line_before_the_last_is_told(damage: str, line: int, journal: Path) -> None:
    lines = journal.read_text().splitlines()
    lines[line - 1] = damage
    journal.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=f"line {line} is damaged.*--overwrite"):
        read_journal(journal)


def test_another_version_is_told(journal: Path) -> None:
    journal.write_text(journal.read_text().replace('"version": 1', '"version": 7'))
    with pytest.raises(InputError, match="version 7"):
        read_journal(journal)


def test_a_line_that_the_disk_does_not_take_leaves_the_journal_as_it_was(
    journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, write = journal.read_bytes(), os.write

    def half(descriptor: int, data: bytes) -> int:
        monkeypatch.setattr(os, "write", _full)
        return write(descriptor, data[: len(data) // 2])

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(OSError, match="No space"):
        append_stage(journal, SECOND)
    assert journal.read_bytes() == before


def _full(*_: object) -> int:
    raise OSError(28, "No space left on device")


def test_a_stage_is_stored_as_it_is_read() -> None:
    stage = FinishedStage(3, "x", ("f",), 1, "", {"pair": (1, 2), "number": 0.1, "keys": {1: None}})
    assert stage.as_stored().content == {"pair": [1, 2], "number": 0.1, "keys": {"1": None}}


class TestIdentity:
    def test_the_order_of_keys_does_not_matter(self) -> None:
        assert digest({"a": 1, "b": {"c": 2, "d": 3}}) == digest({"b": {"d": 3, "c": 2}, "a": 1})
        assert digest({"a": 1}) != digest({"a": 2})

    def test_a_tuple_is_as_good_as_a_list(self) -> None:
        assert digest({"a": (1, 2)}) == digest({"a": [1, 2]})
        assert differences({"a": (1, 2)}, {"a": [1, 2]}) == ()

    @pytest.mark.parametrize(
        ("old", "new", "phrase"),
        [
            ({"recipe": {"weights": {"bits": 4}}}, {"recipe": {"weights": {"bits": 3}}}, "weights.bits was 4 and is 3"),
            ({"recipe": {"grids": ["a", "b"]}}, {"recipe": {"grids": ["a", "c"]}}, "recipe's grids.1 was b and is c"),
            ({"recipe": {"grids": ["a"]}}, {"recipe": {"grids": []}}, """recipe's grids was ["a"] and is []"""),
            ({"recipe": {"head": None}}, {"recipe": {"head": {"bits": 8}}}, """head was null and is {"bits": 8}"""),
            ({"recipe": {}}, {"recipe": {"clip": "search"}}, "the recipe's clip was not there and is search"),
            ({"recipe": {"clip": ""}}, {"recipe": {}}, """the recipe's clip was "" and is not there"""),
            ({"data": "a" * 64}, {"data": "b" * 64}, "the calibration data has changed"),
            ({"samples": 8}, {"samples": 9}, "the number of samples was 8 and is 9"),
            ({"tune": 1.0}, {"tune": True}, "tune was 1.0 and is true"),
            ({"name": "x" * 99}, {"name": "y"}, f"name was {'x' * 60}… and is y"),
        ],
    )
    def test_a_difference_is_told_by_its_place(self, old: dict[str, Any], new: dict[str, Any], phrase: str) -> None:
        [told_one] = differences(old, new)
        assert told_one.endswith(phrase)
        assert digest(old) != digest(new)

    def test_three_of_many_are_named(self) -> None:
        old, new = (dict.fromkeys("abcde", value) for value in (1, 2))
        assert told(differences(old, new)) == "a was 1 and is 2; b was 1 and is 2; c was 1 and is 2; and 2 more"
        assert told(("x",)) == "x"

    def test_what_json_lacks_is_refused(self) -> None:
        with pytest.raises(TypeError):
            digest({"path": Path("x")})

    def test_digests_are_of_json(self) -> None:
        assert digest(json.loads(json.dumps(IDENTITY))) == digest(IDENTITY)
