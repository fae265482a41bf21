"""The memory of this process, as the system counts it."""

import resource
import sys
from pathlib import Path

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


def _status(entry: str) -> int | None:
    try:
        lines = STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{entry}:")), None)
