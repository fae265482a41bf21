"""What the system says of this process's memory."""

import mmap
import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from channelwise.engine import memory
from channelwise.engine.memory import LARGE, give_back_free, peak_resident, resident

BYTES = 64 * 2**20
SLACK = 16 * 2**20
"""What else a process may take or give back in between."""


def test_what_is_filled_is_resident_and_stays_in_the_peak() -> None:
    before = resident()
    # Straight from the system, and back to it: what an allocator gives may be memory that it keeps.
    filled = mmap.mmap(-1, BYTES)
    for page in range(0, BYTES, mmap.PAGESIZE):
        filled[page] = 1
    within = resident()
    assert within - before > BYTES - SLACK
    assert peak_resident() >= within - SLACK
    filled.close()
    if sys.platform == "linux":
        assert resident() < within - BYTES + SLACK
    assert peak_resident() >= within - SLACK


def test_where_the_system_tells_no_more_both_are_the_most_that_ever_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "STATUS", tmp_path / "absent")
    unit = 1 if sys.platform == "darwin" else 1024
    assert peak_resident() == resident() == resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def test_entries_of_the_status_are_kibibytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmPeak:\t 9 kB\nVmHWM:\t 300 kB\nVmRSS:\t 200 kB\n")
    monkeypatch.setattr(memory, "STATUS", status)
    assert (peak_resident(), resident()) == (300 * 1024, 200 * 1024)


GIVEN_BACK = """
import ctypes
from channelwise.engine.memory import LARGE, give_back_free, resident
allocate, free = ctypes.CDLL(None).malloc, ctypes.CDLL(None).free
allocate.restype, free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
give_back_free()
pieces = [allocate(2**16) for _ in range(1024)]
for piece in pieces:
    ctypes.memset(piece, 1, 2**16)
for piece in pieces[:-1]:  # the last one holds the end of the heap
    free(piece)
print(resident(), end=" ")
give_back_free(LARGE - 1)
print(resident(), end=" ")
give_back_free(LARGE)
print(resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked")
def test_freed_memory_goes_back_after_large_work_only() -> None:
    # In a process of its own: what other tests left in the heap would be given back as well.
    command = [sys.executable, "-c", GIVEN_BACK]
    kept, small, large = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert abs(small - kept) < SLACK
    assert large < kept - BYTES + SLACK


def test_where_the_library_cannot_be_asked_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    memory._trim.cache_clear()
    give_back_free(LARGE)
    memory._trim.cache_clear()
