"""Where calls run: a GPU, timed by CUDA events around replays of CUDA graphs, or the CPU, where a script can be tried.

On the CPU a clock on the wall is read. Its figures mean nothing: no cache is kept from serving weights there, and
nothing is captured.
"""

import gc
import math
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from timing import Call, Timing, Turn, nothing, shuffled_rounds
from versions import driver, installed

LEAST_TURN = 1e-3
"""Seconds: shorter graphs are replayed several times in a turn."""

AHEAD = 2_000_000
"""Clock cycles that the GPU waits before a turn, while the turn is queued: no launch is timed."""

CACHES = 4
"""Weights that are used in turn fill the last cache so many times."""

WARM = 3


class Device(Protocol):
    """What both devices do. name: torch's. cache_bytes: of the last cache, 0 where it does not matter."""

    name: str
    cache_bytes: int

    def turn(self, calls: Sequence[Call], before: Callable[[], object] | None = None) -> Turn:
        """The calls as one turn. With `before`, which is done before each turn, they run once in it."""
        ...

    def times(self, turns: Mapping[str, Turn], rounds: int, seconds: float) -> dict[str, Timing]:
        """Each turn once per round, in an order drawn anew, after some untimed ones."""
        ...

    def about(self) -> dict[str, Any]:
        """What figures depend on."""
        ...

    def held(self) -> int:
        """Bytes of tensors in memory, 0 where they are not counted."""
        ...


class Gpu:
    """The first CUDA device."""

    name = "cuda"

    def __init__(self) -> None:
        self.cache_bytes = int(torch.cuda.get_device_properties(0).L2_cache_size)

    def turn(self, calls: Sequence[Call], before: Callable[[], object] | None = None) -> Turn:
        """See `Device`; calls that cannot be captured are called one by one, and the turn says so."""
        turn = self._captured(calls, before or nothing)
        if before is not None:
            return turn
        took = self.times({"turn": turn}, 3, math.inf)["turn"].median * turn.calls
        again = math.ceil(LEAST_TURN / took)
        return replace(turn, run=_repeated(turn.run, again), calls=turn.calls * again)

    def times(self, turns: Mapping[str, Turn], rounds: int, seconds: float) -> dict[str, Timing]:
        """See `Device`."""
        for turn in turns.values():
            _ready(turn)
        found: dict[str, list[float]] = {name: [] for name in turns}
        for order in shuffled_rounds(turns, rounds, seconds):
            events = {name: self._timed(turns[name]) for name in order}
            torch.cuda.synchronize()
            for name, (start, end) in events.items():
                found[name].append(start.elapsed_time(end) / 1e3 / turns[name].calls)
        return {name: Timing(tuple(times)) for name, times in found.items()}

    def about(self) -> dict[str, Any]:
        """See `Device`."""
        properties = torch.cuda.get_device_properties(0)
        return {
            "device": properties.name,
            "driver": driver(),
            "cuda": torch.version.cuda,
            "torch": torch.__version__,
            "triton": installed("triton"),
            "multiprocessors": properties.multi_processor_count,
            "cache_bytes": self.cache_bytes,
        }

    def held(self) -> int:
        """See `Device`."""
        gc.collect()
        return torch.cuda.memory_allocated()

    def _captured(self, calls: Sequence[Call], before: Callable[[], object]) -> Turn:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            before()
            _all(calls)
        torch.cuda.current_stream().wait_stream(stream)
        before()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                output = _all(calls)
        except RuntimeError as error:
            print(f"not captured: {str(error).splitlines()[0]}", file=sys.stderr)
            return Turn(lambda: _all(calls), len(calls), captured=False, before=before)

        def run() -> torch.Tensor:
            graph.replay()
            return output

        return Turn(run, len(calls), captured=True, before=before)

    @staticmethod
    def _timed(turn: Turn) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(AHEAD)
        turn.before()
        start.record()
        turn.run()
        end.record()
        return start, end


class Cpu:
    """The processor, for trying a script."""

    name = "cpu"
    cache_bytes = 0

    def turn(self, calls: Sequence[Call], before: Callable[[], object] | None = None) -> Turn:
        """See `Device`."""
        return Turn(lambda: _all(calls), len(calls), captured=False, before=before or nothing)

    def times(self, turns: Mapping[str, Turn], rounds: int, seconds: float) -> dict[str, Timing]:
        """See `Device`."""
        for turn in turns.values():
            _ready(turn, 1)
        found: dict[str, list[float]] = {name: [] for name in turns}
        for order in shuffled_rounds(turns, rounds, seconds):
            for name in order:
                turns[name].before()
                begun = time.perf_counter()
                turns[name].run()
                found[name].append((time.perf_counter() - begun) / turns[name].calls)
        return {name: Timing(tuple(times)) for name, times in found.items()}

    def about(self) -> dict[str, Any]:
        """See `Device`."""
        return {"device": f"dry run on {platform.machine()}", "torch": torch.__version__, "triton": installed("triton")}

    def held(self) -> int:
        """See `Device`."""
        return 0


def device_of(name: str) -> Device:
    """The device of torch's name. Raises SystemExit without a GPU."""
    if name == Cpu.name:
        return Cpu()
    if not torch.cuda.is_available():
        raise SystemExit("error: there is no CUDA device; --device cpu tries the script on small sizes")
    return Gpu()


def _ready(turn: Turn, times: int = WARM) -> None:
    for _ in range(times):
        turn.before()
        turn.run()


def _all(calls: Sequence[Call]) -> torch.Tensor:
    for call in calls[:-1]:
        call()
    return calls[-1]()


def _repeated(run: Call, times: int) -> Call:
    return run if times == 1 else lambda: _all([run] * times)
