"""What is left of a run that was interrupted, killed, or out of space; and that it goes on to the same bytes."""

import multiprocessing
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from channelwise.errors import InputError
from tests import written
from tests.written import IDS, contents, left, models, one_thread, quantize, stopping_at

__all__ = ["models", "one_thread"]

KILLS = 20


class TestInterrupted:
    @pytest.mark.parametrize("moment", ["reading", "block 1"])
    def test_before_the_first_block_is_done_nothing_is_left(
        self, moment: str, models: Callable[[str], Path], tmp_path: Path
    ) -> None:
        with pytest.raises(KeyboardInterrupt) as interrupt:
            quantize(models("llama"), tmp_path / "deep" / "out", progress=stopping_at(moment))
        assert not hasattr(interrupt.value, "__notes__")
        assert not list(tmp_path.rglob("*.*"))

    @pytest.mark.parametrize(("moment", "kept"), [("block 2", "1 stage is kept"), ("done", "3 stages are kept")])
    def test_afterwards_it_is_kept_and_told(
        self, moment: str, kept: str, models: Callable[[str], Path], tmp_path: Path
    ) -> None:
        with pytest.raises(KeyboardInterrupt) as interrupt:
            quantize(models("llama"), tmp_path / "out", progress=stopping_at(moment))
        assert interrupt.value.__notes__ == [f"{kept}; the same command with --resume goes on"]
        assert not (tmp_path / "out").exists()
        assert left(tmp_path / "out").exists()

    def test_missing_memory_keeps_what_is_done(self, models: Callable[[str], Path], tmp_path: Path) -> None:
        with pytest.raises(MemoryError):
            quantize(models("llama"), tmp_path / "out", progress=stopping_at("block 2", MemoryError))
        assert quantize(models("llama"), tmp_path / "out", resume=True).resumed == 1

    def test_bad_input_leaves_nothing(self, models: Callable[[str], Path], tmp_path: Path) -> None:
        with pytest.raises(InputError, match="vocabulary"):
            quantize(models("llama"), tmp_path / "out", data=IDS + 1000)
        with pytest.raises(InputError):
            quantize(models("llama"), tmp_path / "out", progress=stopping_at("block 1", InputError))
        assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the runs are forked")
def test_killed_at_any_moment_a_run_goes_on_to_the_same_bytes(models: Callable[[str], Path], tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed of the moments: {seed}")
    # A process of its own, as threads of other tests do not survive a fork.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        killed = process.submit(written.kill_often, models("llama"), tmp_path, "outliertune-w8a8", seed, KILLS).result()
    print(f"of a run of {killed.seconds:.2f} s the kills left: {', '.join(killed.found)}")
    assert len(killed.found) >= KILLS
    assert killed.wrong == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("a disk of its own needs Linux and root")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("a disk cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_stops_the_run_cleanly_and_with_more_room_it_goes_on(
    models: Callable[[str], Path], small_disk: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"data": IDS[:10], "resume": True}
    quantize(models("wide"), tmp_path / "whole", **options)
    output, ballast = small_disk / "out", small_disk / "ballast"
    advice = "free some space and run the same command with --resume"
    ballast.write_bytes(bytes(_free(small_disk)))
    refusals, stages = 0, set()
    while not output.exists():
        # Steps small enough that the disk is full in the first stage, in a later one, and when all are put together.
        os.truncate(ballast, ballast.stat().st_size - (128 if refusals < 2 else 32) * 1024)
        try:
            result = quantize(models("wide"), output, **options)
        except InputError as error:
            told = str(error)
            refusals += 1
            journal = left(output) / "journal.jsonl"
            stages.add(journal.read_text().count("\n") if journal.exists() else 0)
            assert told == f"no space left on the disk while writing {output}: {advice}"
    assert refusals >= len(stages) >= 3
    assert result.resumed > 0
    assert contents(output) == contents(tmp_path / "whole")
    assert sorted(path.name for path in small_disk.iterdir()) == ["ballast", "out"]


def _free(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize
