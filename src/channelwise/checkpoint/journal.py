"""The journal of a run: what it depends on, then a line of JSON for every finished stage."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from channelwise.checkpoint.disk import append_durably, sync_one, write_durably
from channelwise.checkpoint.identity import Identity, normalized
from channelwise.errors import InputError

JOURNAL_VERSION = 1
ASSEMBLED = {"assembled": True}
"""The last line: the checkpoint is whole in the working directory, and takes its place next."""


@dataclass(frozen=True)
class FinishedStage:
    """One stage that needs not be done again.

    index: its number, from 0. name: full name of its module, "" for all that is outside the blocks. files: where its
    quantized tensors are, relative to the working directory; bytes: of these together. source: digest of the weights
    that it came from. content: JSON-able, whatever the walk wants back.
    """

    index: int
    name: str
    files: tuple[str, ...]
    bytes: int
    source: str
    content: dict[str, Any]

    def as_stored(self) -> "FinishedStage":
        """The stage as the journal gives it back, so that a run that goes on sees what an uninterrupted one sees."""
        return _stage_of(json.loads(_line({"stage": asdict(self)})))


@dataclass(frozen=True)
class Journal:
    """What a journal says. length: bytes of its whole lines; what follows them was cut off while it was written."""

    identity: Identity
    stages: tuple[FinishedStage, ...]
    is_assembled: bool
    length: int


def begin_journal(path: Path, identity: Identity) -> Journal:
    """A new journal in place of any other, with nothing finished."""
    line = _line({"version": JOURNAL_VERSION, "identity": identity})
    write_durably(path, line)
    return Journal(normalized(identity), (), False, len(line.encode()))


def append_stage(path: Path, stage: FinishedStage) -> None:
    """Adds a finished stage; when this returns, the line is on the disk."""
    append_durably(path, _line({"stage": asdict(stage)}))


def append_assembled(path: Path) -> None:
    """Adds that the checkpoint is whole; when this returns, the line is on the disk."""
    append_durably(path, _line(ASSEMBLED))


def read_journal(path: Path) -> Journal | None:
    """The journal, None where there is none or not even a first line.

    A last line that was cut off is left out. Raises InputError for a damaged line before it, and for a journal of
    another version.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return None
    entries = [_parsed(line) for line in lines]
    if entries and entries[-1] is None:
        entries.pop()
    if not entries:
        return None
    identity, stages, is_assembled = _told(entries, path)
    return Journal(identity, stages, is_assembled, sum(len(line) + 1 for line in lines[: len(entries)]))


def cut_journal(path: Path, length: int) -> None:
    """Takes away what follows the whole lines."""
    if path.stat().st_size > length:
        os.truncate(path, length)
        sync_one(path)


def _told(entries: list[Any], path: Path) -> tuple[Identity, tuple[FinishedStage, ...], bool]:
    """Identity, stages, and whether the last line says that all is assembled."""
    version = entries[0].get("version") if isinstance(entries[0], dict) else None
    if isinstance(version, int) and version != JOURNAL_VERSION:
        raise InputError(
            f"{path} has version {version}, this channelwise reads {JOURNAL_VERSION}: go on with the one that began, "
            "or give --overwrite instead of --resume to start again"
        )
    is_assembled = entries[-1] == ASSEMBLED
    stages: list[FinishedStage] = []
    try:
        for entry in entries[1 : len(entries) - int(is_assembled)]:
            stages.append(_stage_of(entry))
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, len(stages) + 2) from error
    return _identity_of(entries[0], path), tuple(stages), is_assembled


def _identity_of(entry: Any, path: Path) -> Identity:
    try:
        return dict(entry["identity"])
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, 1) from error


def _damaged(path: Path, line: int) -> InputError:
    return InputError(f"{path}: line {line} is damaged; give --overwrite instead of --resume to start again")


def _stage_of(entry: Any) -> FinishedStage:
    """Raises KeyError, TypeError or ValueError for what is no line of a stage."""
    fields = dict(entry["stage"])
    return FinishedStage(**{**fields, "files": tuple(fields["files"])})


def _line(data: dict[str, Any]) -> str:
    # One line of ASCII whatever the content: JSON escapes line breaks and all else within strings.
    return json.dumps(data) + "\n"


def _parsed(line: bytes) -> Any:
    """A line's data, None if it is damaged."""
    try:
        return json.loads(line)
    except ValueError:
        return None
