"""`channelwise quantize` as a child process, or as ranks of torchrun, watched while it runs."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from limits import Limited, forget_cached, limited

PERIOD = 0.02
"""Seconds between two looks at the processes."""

PATIENCE = 60.0
"""Seconds that a child has to end by itself."""


@dataclass(frozen=True)
class Memory:
    """The most bytes a process had in memory: all (VmHWM), and what no file backs (RssAnon, sampled)."""

    resident: int
    anonymous: int


@dataclass(frozen=True)
class Run:
    """How a run went. memory: by rank. group: the most the control group held. answer: what --json printed."""

    status: int
    seconds: float
    memory: tuple[Memory, ...]
    group: int | None
    limit_kind: str
    answer: dict[str, Any]
    messages: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON; what --json says of single sites is left out."""
        return {**asdict(self), "answer": {key: value for key, value in self.answer.items() if key != "sites"}}

    @property
    def walk_seconds(self) -> float:
        """Of the quantization alone: no imports, opening or checkpoint."""
        return float(self.answer["seconds"])

    @property
    def reason(self) -> str:
        """Why it failed, in a few words."""
        if self.status in (-signal.SIGKILL, 128 + signal.SIGKILL):
            return "killed"
        lines = [line.strip() for line in self.messages.splitlines() if line.strip()]
        return next((line for line in reversed(lines) if "rror" in line), lines[-1] if lines else "no message")


@dataclass(frozen=True)
class Job:
    """One way to call `channelwise quantize`. threads: of each process. extra: further options."""

    model: Path
    recipe: str
    data: str
    samples: int
    length: int
    ranks: int = 1
    threads: int = 1
    extra: tuple[str, ...] = ()

    def command(self, output: Path) -> list[str]:
        """The command line; one rank goes without torchrun."""
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(self.ranks)]
        return [
            *(sys.executable, *(launcher if self.ranks > 1 else [])),
            *("-m", "channelwise", "quantize", str(self.model), "--recipe", self.recipe, "--data", self.data),
            *("--output", str(output), "--samples", str(self.samples), "--length", str(self.length), "--json"),
            *self.extra,
        ]

    def run(self, work: Path, limit: int | None = None) -> Run:
        """Runs it with nothing of the model in the page cache; what it wrote is removed."""
        forget_cached(self.model)
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(self.threads),
            "MKL_NUM_THREADS": str(self.threads),
            "HF_HUB_OFFLINE": "1",
        }
        with tempfile.TemporaryDirectory(dir=work) as folder, limited(limit) as under:
            return watched(self.command(Path(folder) / "output"), environment, under)


def watched(command: Sequence[str], environment: dict[str, str], under: Limited) -> Run:
    """Runs a command under a limit and watches its processes."""
    watch = _Watch()
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as messages:
        begun = time.perf_counter()
        child = subprocess.Popen(
            [*under.prefix, *command], env=environment, stdout=output, stderr=messages, start_new_session=True
        )
        thread = threading.Thread(target=watch.until_gone, args=(child.pid,), daemon=True)
        thread.start()
        try:
            status = child.wait()
        except BaseException:
            _end(child)
            raise
        seconds = time.perf_counter() - begun
        thread.join()
        output.seek(0)
        messages.seek(0)
        answer = _last_object(output.read()) if status == 0 else {}
        return Run(status, seconds, watch.ranks(), under.peak(), under.kind, answer, messages.read())


def _end(child: subprocess.Popen[bytes]) -> None:
    """Asks first: torchrun's ranks are in sessions of their own, and it ends them only if it is asked."""
    child.terminate()
    with suppress(subprocess.TimeoutExpired):
        child.wait(PATIENCE)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


class _Watch:
    """Looks at a process and all below it, again and again."""

    def __init__(self) -> None:
        self.found: dict[int, Memory] = {}
        self.rank_of: dict[int, int | None] = {}

    def until_gone(self, pid: int) -> None:
        """Until the process is no more; a zombie has no memory."""
        while self._look(pid):
            time.sleep(PERIOD)

    def ranks(self) -> tuple[Memory, ...]:
        """By rank, where torchrun started ranks; else of the one process that had the most."""
        ranked: dict[int, Memory] = {}
        for pid, memory in self.found.items():
            rank = self.rank_of[pid]
            if rank is not None and (rank not in ranked or memory.resident > ranked[rank].resident):
                ranked[rank] = memory
        if not ranked and self.found:
            ranked[0] = max(self.found.values(), key=lambda memory: memory.resident)
        return tuple(memory for _, memory in sorted(ranked.items()))

    def _look(self, root: int) -> bool:
        alive = False
        for pid in _descendants(root):
            with suppress(OSError, ValueError):
                status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
                if "VmHWM" not in status:
                    continue
                alive = alive or pid == root
                now = Memory(_bytes(status["VmHWM"]), _bytes(status["RssAnon"]))
                before = self.found.get(pid, now)
                # Not by itself: a shell that becomes the command starts anew.
                self.found[pid] = Memory(now.resident, max(before.anonymous, now.anonymous))
                if self.rank_of.get(pid) is None:
                    self.rank_of[pid] = _rank(pid)
        return alive


def _bytes(entry: str) -> int:
    return 1024 * int(entry.split()[0])


def _descendants(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        with suppress(OSError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def _rank(pid: int) -> int | None:
    entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next((int(entry[5:]) for entry in entries if entry.startswith(b"RANK=")), None)


def _last_object(text: str) -> dict[str, Any]:
    """The JSON object at the end of what was printed."""
    start = 0 if text.startswith("{") else text.rfind("\n{") + 1
    found: dict[str, Any] = json.loads(text[start:])
    return found


def bundled_text() -> str:
    """The bundled model's calibration text, of about 10⁵ tokens."""
    return str(files("channelwise") / "bundled" / "calibration.txt")


def need_space(folder: Path, bytes_: int) -> None:
    """Raises SystemExit if the disk of `folder` has not so much left."""
    free = shutil.disk_usage(folder).free
    if free < bytes_:
        raise SystemExit(f"error: {folder} has {free / 1e9:.1f} GB free, a run may write {bytes_ / 1e9:.1f} GB")
