"""How fast memory can be read: several readers over a large buffer, of which the fastest counts.

The C readers (bandwidth.c) are compiled with gcc or cc into build/bench_cpu; without either, torch's alone count,
which read less than the memory gives. Readers take turns with what they are compared with: `Bandwidth.round` once per
round.
"""

import ctypes
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("bandwidth.c")
SCRATCH = Path(__file__).resolve().parents[2] / "build" / "bench_cpu"

BUFFER = 1 << 30
PART = 256 << 20
"""What one reader reads at a time: the next part of the buffer, so that the last reading's caches do not help."""

ALIGNMENT = 64
AHEAD = {"C": 0, "C, prefetch": 2048}


def _compiled() -> ctypes.CDLL | None:
    """The C readers, compiled where the library is missing or older than its source; None without a compiler."""
    library, compiler = SCRATCH / "bandwidth.so", shutil.which("gcc") or shutil.which("cc")
    if not library.exists() or library.stat().st_mtime < SOURCE.stat().st_mtime:
        if compiler is None:
            return None
        SCRATCH.mkdir(parents=True, exist_ok=True)
        flags = ["-O3", "-march=native", "-fopenmp", "-fPIC", "-shared", "-w"]
        subprocess.run([compiler, *flags, "-o", library, SOURCE], check=True)
    loaded = ctypes.CDLL(str(library))
    for function in (loaded.read_stream, loaded.read_streams):
        function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_size_t]
        function.restype = ctypes.c_uint64
    return loaded


class Bandwidth:
    """Readings of every reader, GB/s."""

    def __init__(self) -> None:
        # Beyond the end lies what the last prefetches touch.
        buffer = torch.ones(BUFFER + ALIGNMENT, dtype=torch.uint8)
        first = -buffer.data_ptr() % ALIGNMENT
        self._parts = buffer[first : first + BUFFER].split(PART)
        self._readers = _readers()
        self._next = 0
        self.readings: dict[str, list[float]] = {name: [] for name in self._readers}

    def round(self) -> None:
        """One reading of every reader, each of another part of the buffer."""
        for name, reader in self._readers.items():
            part = self._parts[self._next % len(self._parts)]
            self._next += 1
            started = time.perf_counter()
            reader(part)
            self.readings[name].append(PART / (time.perf_counter() - started) / 1e9)

    def clear(self) -> None:
        """Forgets all readings."""
        for readings in self.readings.values():
            readings.clear()

    def best(self) -> tuple[str, list[float]]:
        """The reader with the highest median, and its readings."""
        return max(self.readings.items(), key=lambda item: statistics.median(item[1]))


def _readers() -> dict[str, Callable[[torch.Tensor], object]]:
    readers: dict[str, Callable[[torch.Tensor], object]] = {
        "torch sum of int64": lambda part: part.view(torch.int64).sum(),
        "torch dot of float32": lambda part: torch.dot(part.view(torch.float32), part.view(torch.float32)),
    }
    library = _compiled()
    if library is None:
        return readers
    for kind, function in (("stream", library.read_stream), ("streams", library.read_streams)):
        for name, ahead in AHEAD.items():
            readers[f"{kind} in {name}"] = _reader(function, ahead)
    return readers


def _reader(function: Callable[..., int], ahead: int) -> Callable[[torch.Tensor], object]:
    return lambda part: function(part.data_ptr(), part.numel(), torch.get_num_threads(), ahead)
