"""The corpus of the bundled model: the Python standard library's own source files."""

import hashlib
import sysconfig
from pathlib import Path

HELD_OUT_EVERY = 40
"""One file in this many is held out, chosen by a hash of its path (stable between machines)."""

_SKIPPED_PARTS = {"site-packages", "__pycache__", "encodings", "pydoc_data", "lib2to3", "idlelib"}
_LARGEST_FILE = 400_000


def source_files() -> list[Path]:
    """All UTF-8 source files of the running interpreter's standard library, sorted by relative path."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if _SKIPPED_PARTS.intersection(relative.parts) or path.stat().st_size > _LARGEST_FILE:
            continue
        files.append(path)
    return files


def is_held_out(path: Path) -> bool:
    """Whether a file is kept out of training; depends on the path below the library's root only."""
    root = Path(sysconfig.get_paths()["stdlib"])
    digest = hashlib.sha256(path.relative_to(root).as_posix().encode()).digest()
    return int.from_bytes(digest[:4], "big") % HELD_OUT_EVERY == 0


def read_texts(*, held_out: bool) -> list[str]:
    """The texts of the training files, or of the held-out files; unreadable files are left out."""
    texts = []
    for path in source_files():
        if is_held_out(path) != held_out:
            continue
        try:
            texts.append(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            continue
    return texts
