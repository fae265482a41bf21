"""The memory of this process, as the system counts it."""

import ctypes
import resource
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

LARGE = 2**22
"""Numbers in a tensor from which on it pays to ask the system for memory anew."""

STATUS = Path("/proc/self/status")


def peak_resident() -> int:
    """Bytes: the most that was resident since the process began, mapped files included."""
    found = _status("VmHWM")
    if found is not None:
        return found
    # macOS counts bytes where others count KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident() -> int:
    """Bytes that are resident now; where the system does not tell, the most that ever were."""
    found = _status("VmRSS")
    return peak_resident() if found is None else found


def give_back_free(numbers: int = LARGE) -> None:
    """Gives freed memory that the allocator keeps back to the system, after work on a tensor of so many numbers.

    Temporary tensors below its threshold of 32 MB leave gaps in its heap, in a large layer hundreds of megabytes. Does
    nothing after work on small ones, and where the C library is not glibc.
    """
    if numbers >= LARGE and (trim := _trim()) is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def _status(entry: str) -> int | None:
    try:
        lines = STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{entry}:")), None)
