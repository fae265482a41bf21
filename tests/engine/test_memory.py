"""What the system says of this process's memory."""

import mmap
import resource
import sys
from pathlib import Path

import pytest

from channelwise.engine import memory
from channelwise.engine.memory import peak_resident, resident

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
