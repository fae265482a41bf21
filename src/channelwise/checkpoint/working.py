"""The working directory of a run: what is finished stays, whatever happens. `unfinished.py` tells what is in it."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from channelwise.checkpoint.assembly import SINGLE_FILE, gather_weights
from channelwise.checkpoint.disk import DiskError, disk_errors_told, full_disk, is_full, sync, sync_one
from channelwise.checkpoint.identity import Identity, differences, digest
from channelwise.checkpoint.journal import FinishedStage as FinishedStage
from channelwise.checkpoint.journal import append_assembled, append_stage
from channelwise.checkpoint.locking import lock
from channelwise.checkpoint.shards import pieces_of, write_weight_file
from channelwise.checkpoint.unfinished import (
    JOURNAL,
    MODEL,
    STAGES,
    Begun,
    Explain,
    begin,
    hidden_folder,
    is_written,
    join,
    keep_hidden,
    remove,
    take_place,
    working_folder,
)
from channelwise.checkpoint.writer import check_output
from channelwise.errors import InputError

IF_FULL = "free some space and run the same command with --resume"
OTHERWISE = "mend that and run the same command with --resume"


class WorkingDirectory:
    """Where a run leaves what it has finished; made by `opened`.

    folder: the directory itself. finished: the stages that need not be done again, in their order. already_finished:
    whether the checkpoint is in its place, so that nothing is left to do. run: digest of what the run depends on.
    """

    def __init__(self, output: Path, identity: Identity, begun: Begun, *, first: bool) -> None:
        self.output, self.folder = Path(output), working_folder(output)
        self.run = digest(identity)
        self.finished, self.already_finished = begun.stages, begun.is_done
        self._found = len(begun.stages)
        self._first, self._is_left = first, begun.is_done

    @classmethod
    @contextmanager
    def opened(
        cls,
        output: Path,
        identity: dict[str, Any],
        *,
        resume: bool,
        overwrite: bool,
        first: bool = True,
        explain: Explain = differences,
    ) -> Iterator["WorkingDirectory"]:
        """The working directory of a run into `output`: new or, with `resume`, as an earlier run left it.

        identity: all that the result depends on, JSON-able. overwrite: whether an older checkpoint in `output` is
        replaced at the end, and, without `resume`, an unfinished run removed. first: False for all ranks but the
        first, which open it after the first one has; they write stages and hidden states, the rest is the first one's.
        explain(old, new): how changes of the identity are told.

        With `resume` and nothing to go on with, it begins anew. Where the checkpoint itself is finished, renames that
        are left are done, and `already_finished` says so. On leaving, see `is_worth_keeping`. Raises InputError: as
        `check_output`; for an unfinished run without `resume`; for one of another identity; for a damaged one; while
        another process works here; and DiskError when the disk does not take a file, or is full anywhere in the body.
        """
        with _full_disk_told(output):
            if not first:
                yield cls(output, identity, join(output, identity), first=False)
            elif resume and not working_folder(output).exists() and is_written(output, identity):
                yield cls(output, identity, Begun(is_done=True), first=True)
            else:
                with _held(output, overwrite):
                    with _disk_told(output):
                        begun = begin(output, identity, resume=resume, overwrite=overwrite, explain=explain)
                    working = cls(output, identity, begun, first=True)
                    with working._left_in_order():
                        yield working

    def hidden(self, boundary: int) -> Path:
        """The folder for the hidden states in front of block `boundary`, made if need be."""
        folder = hidden_folder(self.folder, boundary)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def write_stage(self, index: int, tensors: dict[str, torch.Tensor], largest: int) -> tuple[tuple[str, ...], int]:
        """Writes the tensors of a stage into files of at most `largest` bytes of tensors, or of one tensor.

        Returns the files, relative to the working directory, and their bytes, both for `FinishedStage`; they are on the
        disk then. Copies at most one piece in memory.
        """
        folder = self.folder / STAGES
        names, size = [], 0
        with _disk_told(self.output):
            folder.mkdir(exist_ok=True)
            for number, piece in enumerate(pieces_of(tensors, largest), 1):
                name = f"stage-{index:05d}-{number}.safetensors"
                size += write_weight_file(piece, folder / name)
                names.append(f"{STAGES}/{name}")
            sync_one(folder)
        return tuple(names), size

    def finish(self, stage: FinishedStage) -> None:
        """Notes that a stage needs not be done again: its files and the hidden states behind it are whole.

        Hidden states of other boundaries than the one behind the stage are removed, so with several ranks all of them
        have read and written theirs before. On other ranks than the first it only adds to `finished`.
        """
        if self._first:
            behind = hidden_folder(self.folder, stage.index + 1)
            with _disk_told(self.output):
                if behind.exists():
                    sync(behind)
                append_stage(self.folder / JOURNAL, stage)
            keep_hidden(self.folder, stage.index + 1)
        self.finished = (*self.finished, stage.as_stored())

    def assemble(self, write_texts: Callable[[Path], None], *, single_file: int = SINGLE_FILE) -> None:
        """Makes the checkpoint of all stages, puts it in its place, and removes the working directory.

        write_texts(folder): writes what belongs beside the weights, which are there already; config.json last.
        single_file: bytes of all stages up to which the weights go into one file. Does nothing on other ranks than the
        first.
        """
        if not self._first:
            return
        model = self.folder / MODEL
        with _disk_told(self.output):
            shutil.rmtree(model, ignore_errors=True)
            model.mkdir()
            gather_weights([self.folder / file for stage in self.finished for file in stage.files], model, single_file)
            write_texts(model)
            sync(model)
            sync_one(self.folder)
            append_assembled(self.folder / JOURNAL)
            take_place(self.output)
        self._is_left = True

    @contextmanager
    def _left_in_order(self) -> Iterator[None]:
        """After an error the directory stays or goes. Once it was left, it may be another run's."""
        try:
            yield
        except BaseException as error:
            if not self._is_left and not is_worth_keeping(error, self._found, len(self.finished)):
                remove(self.output)
            raise


def is_worth_keeping(error: BaseException, found: int, finished: int) -> bool:
    """Whether a run that ends by this error leaves its working directory.

    found: stages that an earlier run had finished; finished: those and its own. It does if a stage is finished and a
    later run may get further: after an interruption, a lost process, a full disk, missing memory, an error in a
    program. What is wrong with the input would be wrong again; but a run that has finished nothing itself, refused
    soon after it began, leaves what it found.
    """
    is_of_input = isinstance(error, InputError) and not isinstance(error, DiskError)
    return finished > 0 and (finished == found or not is_of_input)


@contextmanager
def _held(output: Path, overwrite: bool) -> Iterator[None]:
    """The directory, made if need be, for this process alone."""
    if not working_folder(output).exists():
        check_output(output, overwrite)
    with _disk_told(output):
        held = lock(working_folder(output), output)
    with held:
        yield


@contextmanager
def _disk_told(output: Path) -> Iterator[None]:
    with disk_errors_told(output, if_full=IF_FULL, otherwise=OTHERWISE):
        yield


@contextmanager
def _full_disk_told(output: Path) -> Iterator[None]:
    """A full disk in whatever the body does, in writing hidden states say, as a DiskError."""
    try:
        yield
    except Exception as error:
        if is_full(error):
            raise full_disk(output, IF_FULL) from error
        raise
