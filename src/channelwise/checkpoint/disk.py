"""Files that stay: on the disk before their names are, and one line where the disk does not take them."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from channelwise.errors import InputError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class DiskError(InputError):
    """The disk did not take a file. Nothing is wrong with the input: the same command may go on later."""


def is_full(error: BaseException) -> bool:
    """Whether an error says that the disk, or the user's share of it, is full. safetensors says so in its text only."""
    if isinstance(error, SafetensorError):
        return any(f"(os error {number})" in str(error) for number in NO_SPACE)
    return isinstance(error, OSError) and error.errno in NO_SPACE


@contextmanager
def disk_errors_told(directory: Path, *, if_full: str, otherwise: str) -> Iterator[None]:
    """What the disk raises as a DiskError: one line that names the directory and ends with what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if is_full(error):
            raise full_disk(directory, if_full) from error
        raise DiskError(f"{directory} cannot be written ({error}); {otherwise}") from error


def full_disk(directory: Path, advice: str) -> DiskError:
    """The error of a full disk."""
    return DiskError(f"no space left on the disk while writing {directory}: {advice}")


def sync(folder: Path) -> None:
    """Everything in the folder, and its names, to the disk."""
    for path in sorted(folder.rglob("*")):
        sync_one(path)
    sync_one(folder)


def sync_one(path: Path) -> None:
    """A file's bytes, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, text: str) -> None:
    """A small file that is there whole, also after a power failure, or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    sync_one(partial)
    partial.replace(path)
    sync_one(path.parent)


def append_durably(path: Path, text: str) -> None:
    """Adds text at the end of a file; where the disk does not take all of it, the file is as before."""
    data = text.encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        before = os.fstat(descriptor).st_size
        try:
            while data:
                data = data[os.write(descriptor, data) :]
            os.fsync(descriptor)
        except BaseException:
            os.ftruncate(descriptor, before)
            raise
    finally:
        os.close(descriptor)
