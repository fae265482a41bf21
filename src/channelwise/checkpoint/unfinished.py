"""What an earlier run left in the working directory of `output`: taken up, refused or removed.

The directory is `.DIR.unfinished` beside DIR, so that renames do not copy. In it: journal.jsonl, what the run depends
on and its finished stages; stages/, their tensors; hidden/, the hidden states at a block boundary; model/, the
checkpoint in assembly; replaced/, an older DIR while the new one takes its place; lock, held by whoever writes.
"""

import errno
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from channelwise.checkpoint.assembly import put_back, put_in_place
from channelwise.checkpoint.identity import Identity, digest, told
from channelwise.checkpoint.journal import FinishedStage, Journal, begin_journal, cut_journal, read_journal
from channelwise.checkpoint.locking import LOCK
from channelwise.checkpoint.writer import check_output, recorded_run
from channelwise.errors import InputError

JOURNAL = "journal.jsonl"
STAGES, HIDDEN, MODEL, REPLACED = "stages", "hidden", "model", "replaced"

START_AGAIN = "give --overwrite instead of --resume to start again"

Explain = Callable[[Identity, Identity], Sequence[str]]
"""What differs between the identity of an unfinished run and the present one, a phrase each."""


@dataclass(frozen=True)
class Begun:
    """Where a run begins: behind these stages; is_done: nowhere, as its checkpoint is in its place."""

    stages: tuple[FinishedStage, ...] = ()
    is_done: bool = False


def working_folder(output: Path) -> Path:
    """Where a run into `output` works."""
    target = Path(output).resolve()
    return target.with_name(f".{target.name}.unfinished")


def hidden_folder(folder: Path, boundary: int) -> Path:
    """Where the hidden states in front of block `boundary` are."""
    return folder / HIDDEN / f"{boundary:05d}"


def is_written(output: Path, identity: Identity) -> bool:
    """Whether the checkpoint in `output` is by a run of this identity."""
    return recorded_run(output) == digest(identity)


def begin(output: Path, identity: Identity, *, resume: bool, overwrite: bool, explain: Explain) -> Begun:
    """Where a run begins in its directory, which is locked. Raises InputError as `WorkingDirectory.opened`."""
    folder = working_folder(output)
    journal = None if overwrite and not resume else read_journal(folder / JOURNAL)
    if journal is None or _is_gone(journal, output) or not (resume or journal.stages):
        return _begin_anew(output, identity, resume=resume, overwrite=overwrite)
    if not resume:
        raise InputError(_in_the_way(output, journal))
    _check_identity(output, journal, identity, explain)
    if journal.is_assembled:
        if (folder / MODEL).exists():
            check_output(output, overwrite)
        take_place(output)
        return Begun(journal.stages, is_done=True)
    check_output(output, overwrite)
    _check_files(folder, journal.stages)
    cut_journal(folder / JOURNAL, journal.length)
    _remove_unknown(folder, journal.stages)
    return Begun(journal.stages)


def join(output: Path, identity: Identity) -> Begun:
    """Where the first rank of this run has begun, for another one. Raises InputError if it is not seen from here."""
    folder = working_folder(output)
    journal = read_journal(folder / JOURNAL)
    if journal is None and is_written(output, identity):
        return Begun(is_done=True)
    if journal is None or digest(journal.identity) != digest(identity):
        raise InputError(
            f"{folder} is not there as the first process of this run sees it: --output has to be in a directory that "
            "all machines share"
        )
    return Begun(journal.stages)


def take_place(output: Path) -> None:
    """The assembled checkpoint to its place; then nothing of the working directory is left."""
    folder = working_folder(output)
    put_in_place(folder / MODEL, Path(output).resolve(), folder / REPLACED)
    # The journal goes last: until then a run that goes on knows that all is done.
    _remove_folders(folder)
    remove(output)


def remove(output: Path) -> None:
    """Removes the working directory; an older checkpoint that had made room comes back."""
    folder = working_folder(output)
    _empty(output)
    (folder / LOCK).unlink(missing_ok=True)
    try:
        folder.rmdir()
    except OSError as error:
        # Another process has made its lock in the meantime, or has removed the directory.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            raise


def keep_hidden(folder: Path, boundary: int | None) -> None:
    """Removes the hidden states of all boundaries but one."""
    for path in (folder / HIDDEN).glob("*"):
        if boundary is None or path != hidden_folder(folder, boundary):
            shutil.rmtree(path, ignore_errors=True)


def _begin_anew(output: Path, identity: Identity, *, resume: bool, overwrite: bool) -> Begun:
    """With nothing finished, whatever was in the directory; or with all of it, if only the directory was left."""
    try:
        _empty(output)
        if resume and is_written(output, identity):
            remove(output)
            return Begun(is_done=True)
        check_output(output, overwrite)
        begin_journal(working_folder(output) / JOURNAL, identity)
    except BaseException:
        remove(output)
        raise
    return Begun()


def _is_gone(journal: Journal, output: Path) -> bool:
    """Whether the checkpoint was in its place and has been taken away since."""
    is_placed = journal.is_assembled and not (working_folder(output) / MODEL).exists()
    return is_placed and not Path(output).resolve().exists()


def _check_identity(output: Path, journal: Journal, identity: Identity, explain: Explain) -> None:
    if digest(journal.identity) == digest(identity):
        return
    changes = told(tuple(explain(journal.identity, identity)))
    raise InputError(
        f"the unfinished run into {output} was another one: {changes}; go on with what it began with, or {START_AGAIN}"
    )


def _in_the_way(output: Path, journal: Journal) -> str:
    """What to say of an unfinished run that nobody has mentioned."""
    if journal.is_assembled:
        far = "all but the last renames done"
    else:
        count, last = len(journal.stages), journal.stages[-1].name or "what is outside the blocks"
        far = f"{count} stage{'s' if count > 1 else ''} finished, {last} the last"
    return f"an unfinished run into {output} is there ({far}): give --resume to go on, or --overwrite to start again"


def _check_files(folder: Path, stages: Sequence[FinishedStage]) -> None:
    """Raises InputError, naming the file, if one of a finished stage is missing or has another size."""
    for stage in stages:
        paths = [folder / file for file in stage.files]
        for path in paths:
            if not path.is_file():
                raise InputError(f"{path} is missing, so the run cannot go on: {START_AGAIN}")
        size = sum(path.stat().st_size for path in paths)
        if size != stage.bytes:
            names, was = ", ".join(str(path) for path in paths), f"{size} bytes in place of {stage.bytes}"
            raise InputError(f"{names}: {was}, so the run cannot go on: {START_AGAIN}")


def _remove_unknown(folder: Path, stages: Sequence[FinishedStage]) -> None:
    """Removes what belongs to no finished stage: half-written files, hidden states of other boundaries."""
    known = {folder / file for stage in stages for file in stage.files}
    for path in (folder / STAGES).glob("*"):
        if path not in known:
            path.unlink()
    keep_hidden(folder, stages[-1].index + 1 if stages else None)


def _empty(output: Path) -> None:
    """All but the lock, the journal first: without it the rest is nothing that a run could go on with."""
    folder = working_folder(output)
    put_back(folder / REPLACED, Path(output).resolve())
    for path in folder.glob(f"{JOURNAL}*"):
        path.unlink()
    _remove_folders(folder)


def _remove_folders(folder: Path) -> None:
    for name in (REPLACED, MODEL, HIDDEN, STAGES):
        shutil.rmtree(folder / name, ignore_errors=True)
