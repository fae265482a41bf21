"""Versions that figures depend on."""

import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

DRIVER = Path("/sys/module/nvidia/version")


def installed(package: str) -> str:
    """A package's version, "none" where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def driver() -> str:
    """The NVIDIA driver's, as its kernel module or its own program tells it."""
    if DRIVER.is_file():
        return DRIVER.read_text().strip()
    program = shutil.which("nvidia-smi")
    if program is None:
        return "unknown"
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"
