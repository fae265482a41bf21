"""Results of runs on disk, one JSON file each, so that what was measured once is not measured again."""

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from channelwise.errors import InputError

Entry = dict[str, Any]


@dataclass(frozen=True)
class Cache:
    """A folder of entries by key. A key names all that an entry depends on, so entries never grow old.

    What is no whole entry (cut short, damaged, of another key) counts as not there and is written anew.
    """

    folder: Path

    def read(self, key: str) -> Entry | None:
        """The entry of this key, None where there is no whole one."""
        try:
            stored = json.loads(self._path(key).read_text(encoding="utf-8"))
            entry = stored["entry"]
            whole = stored["key"] == key and stored["digest"] == _digest(entry)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return entry if whole and isinstance(entry, dict) else None

    def write(self, key: str, entry: Entry) -> None:
        """Keeps an entry of JSON-able data, in one step: a reader sees the old one or the new one. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"key": key, "digest": _digest(entry), "entry": entry}, allow_nan=False)
        descriptor, partial = tempfile.mkstemp(dir=self.folder, prefix=".partial-")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            Path(partial).replace(self._path(key))
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"


def opened_cache(folder: str | Path | None) -> Cache | None:
    """The cache in a folder, made if need be; None for None. Raises InputError for one that cannot be written to."""
    if folder is None:
        return None
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--cache {folder} cannot be made ({error.strerror}); choose another") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise InputError(f"--cache {folder} is not writable; choose another, or --no-cache")
    return Cache(path)


def user_cache() -> Path | None:
    """The user's own folder for it, $XDG_CACHE_HOME/channelwise or ~/.cache/channelwise; None if it is not writable."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        folder = Path(base).expanduser() / "channelwise"
        opened_cache(folder)
    except (InputError, RuntimeError):  # RuntimeError: nobody's home
        return None
    return folder


def _digest(entry: Any) -> str:
    """Tells damage. A JSON round trip changes no number, so written and read entries have the same."""
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()
