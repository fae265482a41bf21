"""Where a page goes: checked before the long work, written whole or not at all."""

import os
import tempfile
from pathlib import Path

from channelwise.errors import InputError


def check_page_path(path: Path, overwrite: bool) -> None:
    """Raises InputError if a page cannot be written there; writes nothing."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{path}: the report is an HTML page; give --report a name that ends in .html")
    if path.is_dir():
        raise InputError(f"{path} is a folder; give --report the name of a file")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists; choose another --report or give --overwrite")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; make it first, or choose another --report")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{folder} is not writable; choose another --report")


def write_page(text: str, path: Path) -> None:
    """Writes the page in one step: a reader sees the old file or the new one. Raises OSError."""
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.resolve().parent, prefix=f".{path.name}.", delete=False
    ) as file:
        partial = Path(file.name)
        try:
            file.write(text)
            file.close()
            partial.chmod(0o666 & ~_umask())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def _umask() -> int:
    """The process's mask of permissions: temporary files are private, a page is like any other file."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
