"""A hard limit on a child's memory: a control group of Linux where this process may make one, else RLIMIT_DATA.

The group is made inside this process's own, so that no outer limit is left, and removed afterwards. Its limit counts
the pages of files as well: the kernel drops them before it kills. RLIMIT_DATA counts what a process has allocated for
itself, not its mapped files.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ENTER = 'echo $$ > "$0" && exec "$@"'
"""A shell's way into a group before it becomes the command."""


@dataclass(frozen=True)
class Files:
    """Names of a control group's files: its limit, the limit with swap and what to write there, the most it held."""

    limit: str
    swap: str
    peak: str


VERSION_1 = Files("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.max_usage_in_bytes")
VERSION_2 = Files("memory.max", "memory.swap.max", "memory.peak")


@dataclass(frozen=True)
class Limited:
    """How to start a child under the limit: put `prefix` before its command. kind: what holds the limit."""

    kind: str
    prefix: tuple[str, ...] = ()
    peak_file: Path | None = None

    def peak(self) -> int | None:
        """The most bytes the group has held, pages of files that the child was first to read among them."""
        with suppress(OSError, AttributeError):
            return int(self.peak_file.read_text())  # type: ignore[union-attr]
        return None


@contextmanager
def limited(limit: int | None) -> Iterator[Limited]:
    """A limit of so many bytes; None: none, but a group that counts, where one can be made."""
    group = _made_group(limit)
    if group is None:
        if limit is None:
            yield Limited("none")
        else:
            yield Limited("RLIMIT_DATA", ("sh", "-c", f'ulimit -d {limit // 1024} && exec "$@"', "sh"))
        return
    folder, files = group
    try:
        kind = "control group" if limit is not None else "none"
        yield Limited(kind, ("sh", "-c", ENTER, str(folder / "cgroup.procs")), folder / files.peak)
    finally:
        _remove(folder)


@contextmanager
def ended_by_signal() -> Iterator[None]:
    """SIGTERM ends the script as Ctrl-C does, so that groups and folders are cleared away."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def forget_cached(folder: Path) -> None:
    """Drops a folder's files from the page cache: a group is only charged for pages that it was first to read."""
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)  # only clean pages can be dropped
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(handle)


def _made_group(limit: int | None) -> tuple[Path, Files] | None:
    for parent, files in _own_groups():
        folder = parent / f"channelwise-scale-{os.getpid()}"
        with suppress(OSError):
            folder.mkdir()
            if not (folder / files.peak).is_file():
                _remove(folder)
                continue
            if limit is not None:
                try:
                    (folder / files.limit).write_text(str(limit))
                except OSError:
                    _remove(folder)
                    continue
                with suppress(OSError):  # not there where swap is not counted
                    (folder / files.swap).write_text(str(limit) if files is VERSION_1 else "0")
            return folder, files
    return None


def _own_groups() -> Iterator[tuple[Path, Files]]:
    """This process's control groups that count memory."""
    memberships = Path("/proc/self/cgroup")
    if not memberships.is_file():
        return
    mounts = _mounts()
    for line in memberships.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        kind = "cgroup2" if not controllers else "memory" if "memory" in controllers.split(",") else None
        if kind in mounts:
            # A container may see its own group as the root of the mount, under another path.
            inside = mounts[kind] / path.lstrip("/")
            yield inside if inside.is_dir() else mounts[kind], VERSION_2 if kind == "cgroup2" else VERSION_1


def _mounts() -> Mapping[str | None, Path]:
    """Where the memory controller of version 1 and the tree of version 2 are mounted."""
    found: dict[str | None, Path] = {}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        if kind == "cgroup2":
            found["cgroup2"] = Path(place)
        elif kind == "cgroup" and "memory" in options.split(","):
            found["memory"] = Path(place)
    return found


def _remove(folder: Path) -> None:
    """The kernel lets a group go a moment after its last process."""
    for _ in range(50):
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.1)
        else:
            return
    print(f"{folder} still holds processes and stays", file=sys.stderr)
