"""A little run over the working directory: stages of random tensors that depend on the hidden states before them."""

import json
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from channelwise.checkpoint.assembly import SINGLE_FILE
from channelwise.checkpoint.working import FinishedStage, WorkingDirectory

IDENTITY: dict[str, Any] = {
    "recipe": {"name": "by-hand", "weights": {"bits": 4, "groups": [128, 64]}},
    "model": {"files": {"model.safetensors": {"bytes": 100, "header": "a" * 64}}},
    "data": "0" * 64,
    "samples": 8,
}
STAGES = 3
WATCHED = ("open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod")
"""Before these Python tells its audit hooks."""

Step = Callable[[int], None]


def walk(
    output: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    identity: dict[str, Any] | None = None,
    single_file: int = SINGLE_FILE,
    behind: Step = lambda index: None,
    width: int = 16,
) -> int:
    """Runs to the end, or until `behind(index)`, called behind each stage, raises; returns how many stages it did."""
    known = identity or IDENTITY
    with WorkingDirectory.opened(output, known, resume=resume, overwrite=overwrite) as working:
        if working.already_finished:
            return 0
        begin = len(working.finished)
        for index in range(begin, STAGES):
            stage(working, index, width)
            behind(index)
        working.assemble(lambda folder: write_texts(working, folder), single_file=single_file)
    return STAGES - begin


def stage(working: WorkingDirectory, index: int, width: int = 16) -> None:
    """One stage: from the hidden states before it come its tensors and the hidden states behind it."""
    before = load_file(working.hidden(index) / "x.safetensors")["x"] if index else torch.arange(float(width))
    noise = torch.randn(width, width, generator=torch.Generator().manual_seed(index))
    tensors = {f"blocks.{index}.a": noise * before, f"blocks.{index}.b": (noise * 9).to(torch.int8)}
    files, size = working.write_stage(index, tensors, width * width * 4)
    save_file({"x": before * 1.5 + noise[0]}, working.hidden(index + 1) / "x.safetensors")
    working.finish(FinishedStage(index, f"blocks.{index}", files, size, "", {"loss": float(noise.sum())}))


def write_texts(working: WorkingDirectory, folder: Path) -> None:
    """What depends on all stages, and the record by which a finished checkpoint is known."""
    (folder / "README.md").write_text(json.dumps([stage.content for stage in working.finished]))
    (folder / "quantization_record.json").write_text(json.dumps({"run": working.run}))
    (folder / "config.json").write_text("{}")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def walk_when_told(ready: Connection, output: Path, options: dict[str, Any]) -> None:
    """For a process that is killed from outside: says when it begins."""
    torch.set_num_threads(1)
    ready.send("begins")
    walk(output, **options)


def walk_until(step: int, output: Path, options: dict[str, Any]) -> None:
    """Kills its own process before it touches the file system for the `step`-th time; ends as ever if it never does.

    Without fsync, which matters to a power failure only.
    """
    torch.set_num_threads(1)
    os.fsync = lambda descriptor: None
    seen = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in WATCHED and (event != "open" or output.name in str(arguments[0])):
            seen += 1
            if seen == step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    walk(output, **options)


def walk_until_torn(line: int, output: Path, options: dict[str, Any]) -> None:
    """Kills its own process when half of a line of the journal is written."""
    torch.set_num_threads(1)
    write, seen = os.write, 0

    def half(descriptor: int, data: bytes) -> int:
        nonlocal seen
        seen += 1
        if seen == line:
            write(descriptor, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return write(descriptor, data)

    os.write = half
    walk(output, **options)
