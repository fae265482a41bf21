"""A run that is killed anywhere goes on to the same bytes; DIR is there whole or not at all."""

import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoint import runs
from tests.checkpoint.runs import STAGES, contents, walk

KILLS = 20
IN_SHARDS = {"single_file": 0}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, bytes]]:
    """The files of an uninterrupted run with these options."""

    def of(**options: Any) -> dict[str, bytes]:
        output = tmp_path_factory.mktemp("whole") / "out"
        walk(output, **options)
        return contents(output)

    return of


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Processes by a fork of one that has everything imported, so that one begins at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "tests.checkpoint.runs"])
    return context


class TestKilled:
    def test_at_random_moments(
        self, processes: ForkServerContext, tmp_path: Path, whole: Callable[..., dict[str, bytes]]
    ) -> None:
        layouts: list[dict[str, Any]] = [{}, IN_SHARDS]
        expected, randomly = [whole(**options) for options in layouts], random.Random(0)
        output, kills, longest = tmp_path / "out", 0, _seconds(processes, tmp_path / "first")
        while kills < KILLS:
            options, files = layouts[kills % 2], expected[kills % 2]
            kills += _kill_after(randomly.uniform(0, longest), processes, output, options)
            assert not output.exists() or contents(output) == files
            walk(output, resume=True, **options)
            assert contents(output) == files
            assert {path.name for path in tmp_path.iterdir()} == {"first", "out"}
            shutil.rmtree(output)

    def test_again_and_again(
        self, processes: ForkServerContext, tmp_path: Path, whole: Callable[..., dict[str, bytes]]
    ) -> None:
        output, randomly = tmp_path / "out", random.Random(1)
        longest = _seconds(processes, tmp_path / "first")
        for _ in range(KILLS):
            _kill_after(randomly.uniform(0, longest / 2), processes, output, {"resume": True})
        walk(output, resume=True)
        assert contents(output) == whole()

    @pytest.mark.parametrize("existing", [False, True])
    def test_before_every_step_on_the_file_system(
        self,
        existing: bool,
        processes: ForkServerContext,
        tmp_path: Path,
        whole: Callable[..., dict[str, bytes]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)
        options = {"overwrite": existing, **(IN_SHARDS if existing else {})}
        expected, output, step = whole(**options), tmp_path / "out", 0
        old = {"config.json": b"old"}
        finished = False
        while not finished:
            step += 1
            if existing:
                output.mkdir()
                (output / "config.json").write_bytes(old["config.json"])
            finished = _ended(processes, runs.walk_until, step, output, options) == 0
            there = contents(output) if output.exists() else {}
            assert there in ({}, old, expected)
            assert there or not existing or contents(output.with_name(f".{output.name}.unfinished") / "replaced") == old
            walk(output, resume=True, **options)
            assert contents(output) == expected
            assert [path.name for path in tmp_path.iterdir()] == ["out"]
            shutil.rmtree(output)
        assert step > 50

    @pytest.mark.parametrize("line", range(1, STAGES + 2))
    def test_while_a_line_of_the_journal_is_written(
        self, line: int, processes: ForkServerContext, tmp_path: Path, whole: Callable[..., dict[str, bytes]]
    ) -> None:
        assert _ended(processes, runs.walk_until_torn, line, tmp_path / "out", {}) == -signal.SIGKILL
        assert walk(tmp_path / "out", resume=True) == max(STAGES - line + 1, 0)
        assert contents(tmp_path / "out") == whole()


def _seconds(processes: ForkServerContext, output: Path) -> float:
    """How long an uninterrupted run takes in a process of its own; the first one is slower."""
    for folder in (output.with_name("slow"), output):
        begin = time.monotonic()
        assert not _kill_after(None, processes, folder, {})
    shutil.rmtree(output.with_name("slow"))
    return time.monotonic() - begin


def _kill_after(seconds: float | None, processes: ForkServerContext, output: Path, options: dict[str, Any]) -> bool:
    """Runs in another process, killed so long after it has begun (None: never); whether it was still running then."""
    ready, there = processes.Pipe(duplex=False)
    process = processes.Process(target=runs.walk_when_told, args=(there, output, options))
    process.start()
    there.close()
    assert ready.recv() == "begins"
    if seconds is not None:
        time.sleep(seconds)
        process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def _ended(processes: ForkServerContext, target: Callable[..., None], *arguments: Any) -> int | None:
    """The exit status of a process that runs this."""
    process = processes.Process(target=target, args=arguments)
    process.start()
    process.join()
    return process.exitcode
