"""One process at a time in a working directory."""

import errno
import fcntl
import os
from pathlib import Path
from typing import IO

from channelwise.errors import InputError

LOCK = "lock"

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""Some network file systems have none; there the directory stays unlocked."""


def lock(folder: Path, output: Path) -> IO[bytes]:
    """Makes the folder if need be and holds it until the file returned is closed or the process ends, however.

    Raises InputError, naming `output`, if another process holds it.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file = (folder / LOCK).open("ab")
        except FileNotFoundError:
            continue  # whoever was here before us has just removed the folder
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise InputError(
                f"another process is writing {output} at this moment: wait for it, or choose another --output"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                file.close()
                raise
        if _is_there(file, folder / LOCK):
            return file
        file.close()


def _is_there(file: IO[bytes], path: Path) -> bool:
    """Whether the open file still is the one of this name: it may have been removed before it was locked."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
