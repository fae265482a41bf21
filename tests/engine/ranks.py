"""Real processes as ranks, for tests: started like torchrun starts them, but forked from a warm process.

`run_ranks(work, 2, …)` gives what `work(world, …)` returns on each rank; `started_ranks` lets a test disturb them.
`torchrun` starts the real one. `work` is a function of a module, its arguments and its result can be pickled.
"""

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from channelwise.engine.joining import joined_world
from channelwise.engine.pulse import Pace
from channelwise.errors import InputError

SECONDS = 60.0
"""After which a test gives up; nothing is measured by it."""


@dataclass(frozen=True)
class Ended:
    """A rank that has ended. status: as shells count it, negative after a signal."""

    status: int
    result: Any
    stdout: str
    stderr: str


class Ranks:
    """The started processes."""

    def __init__(self, processes: Sequence[BaseProcess], folder: Path) -> None:
        self._processes, self._folder = processes, folder

    def send(self, rank: int, number: signal.Signals) -> None:
        process = self._processes[rank].pid
        assert process is not None
        os.kill(process, number)

    def said(self, rank: int) -> str:
        """What a rank has written to standard output so far."""
        path = self._folder / f"{rank}.out"
        return path.read_text() if path.exists() else ""

    def wait_until(self, done: Callable[[], bool]) -> None:
        """Waits for a condition that the ranks bring about."""
        for _ in range(int(SECONDS / 0.02)):
            if done():
                return
            time.sleep(0.02)
        raise AssertionError(f"ranks said {[self.said(rank) for rank in range(len(self._processes))]}")

    def ended(self, rank: int) -> Ended:
        """Waits for the end of a rank."""
        process = self._processes[rank]
        process.join(SECONDS)
        late = process.exitcode is None
        if late:
            self.send(rank, signal.SIGABRT)  # tells where every thread is
            process.join(SECONDS)
        stderr = (self._folder / f"{rank}.err").read_text()
        assert not late and process.exitcode is not None, f"rank {rank} did not end; it said: {stderr}"
        result = self._folder / f"{rank}.result"
        return Ended(
            status=process.exitcode,
            result=torch.load(result, weights_only=False) if result.exists() else None,
            stdout=self.said(rank),
            stderr=stderr,
        )


@contextlib.contextmanager
def started_ranks(
    work: Callable[..., Any], size: int, *arguments: Any, pace: Pace | None = None, agent: bool = True
) -> Iterator[Ranks]:
    """Starts `work(world, *arguments)` on so many ranks; what still runs at the end is killed.

    agent: whether this process keeps the store, as torchrun's does; else rank 0 keeps it.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=SECONDS))
    port = store.port
    if not agent:
        del store
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["channelwise.engine.joining", "hypothesis", "pytest"])
    with TemporaryDirectory() as folder:
        processes = []
        for rank in range(size):
            environ = {**launch_variables(rank, size, port), "TORCHELASTIC_USE_AGENT_STORE": str(agent)}
            process = context.Process(target=_be_rank, args=(work, arguments, environ, pace, folder, rank))
            process.start()
            processes.append(process)
        try:
            yield Ranks(processes, Path(folder))
        finally:
            for process in processes:
                process.kill()
                process.join()


def run_ranks(work: Callable[..., Any], size: int, *arguments: Any, pace: Pace | None = None) -> list[Any]:
    """What `work(world, *arguments)` returns on each of so many ranks; fails if one fails or says anything."""
    with started_ranks(work, size, *arguments, pace=pace) as ranks:
        ended = [ranks.ended(rank) for rank in range(size)]
    for rank, end in enumerate(ended):
        assert (end.status, end.stderr) == (0, ""), f"rank {rank}: {end.stderr}"
    return [end.result for end in ended]


def launch_variables(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun sets for a rank of one machine."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def torchrun(
    count: int, *arguments: str | Path, environ: Mapping[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """`torchrun --nproc-per-node COUNT ARGUMENTS`, on one machine, with one thread per rank."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environ or {})},
    )


def _be_rank(
    work: Callable[..., Any],
    arguments: Sequence[Any],
    environ: Mapping[str, str],
    pace: Pace | None,
    folder: str,
    rank: int,
) -> None:
    """The process: like the command line, its exit status is 2 for bad input and 1 for other errors."""
    for number, ending in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{folder}/{rank}.{ending}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    faulthandler.enable()
    os.environ.update(environ)
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with joined_world("cpu", pace=pace) as world:
            result = work(world, *arguments)
    except (InputError, RuntimeError, KeyboardInterrupt) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2 if isinstance(error, InputError) else 1) from None
    torch.save(result, f"{folder}/{rank}.result")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)
