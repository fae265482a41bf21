"""One model quantized by several processes: the checkpoint that one process writes, whoever dies meanwhile."""

import json
import math
import multiprocessing
import multiprocessing.forkserver
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from channelwise import api
from channelwise.engine.world import World
from channelwise.errors import InputError
from tests import written
from tests.cli import tiny
from tests.engine.ranks import run_ranks, started_ranks, torchrun
from tests.engine.test_joining import hosts as hosts
from tests.written import IDS, contents, left, quantize_by_rank

EXACT = [
    ("llama", "rtn-w8a8"),
    ("llama", "outliertune-w8a8"),
    ("llama", "smoothquant-w8a8"),
    ("mixtral", "rtn-w8a8"),
    ("opt", "outliertune-w8a8"),
]
"""Models with recipes that rest on smallest and largest values, which are the same however samples are divided."""
SUMMED = ["os-plus-w6a6", "gptq-ada-w4g128", "llm-fp4-w4a4"]
"""Recipes that rest on sums, which are rounded in another order."""
LENGTH = 128


@pytest.fixture(autouse=True, scope="module")
def _one_thread_and_warm_ranks() -> Iterator[None]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.written", "channelwise.api", "hypothesis", "pytest"])
    multiprocessing.forkserver.ensure_running()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in ("llama", "opt", "mixtral"):
        written.saved(name, folder / name)
    return folder


def quantize_all(world: World, models: Path, folder: Path, todo: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """Several models by several recipes, one after the other; what each rank found."""
    found = []
    for model, recipe in todo:
        done = quantize_by_rank(world, models / model, folder / f"{model}-{recipe}", recipe)
        record = done.record
        found.append({"sites": record.sites, "after": done.after, "resumed": done.resumed})
    return found


@pytest.mark.parametrize("size", [2, 3])
def test_every_file_has_the_bytes_that_one_process_writes(size: int, models: Path, tmp_path: Path) -> None:
    """IDS are three batches."""
    todo = EXACT if size == 2 else EXACT[-2:]
    told = run_ranks(quantize_all, size, models, tmp_path / "ranks", todo)
    for model, recipe in todo:
        name = f"{model}-{recipe}"
        written.quantize(models / model, tmp_path / name, recipe)
        assert contents(tmp_path / "ranks" / name) == contents(tmp_path / name)
    assert all(rank == told[0] for rank in told)
    assert all(found["sites"] for found in told[0])


def test_more_ranks_than_batches_work_too(models: Path, tmp_path: Path) -> None:
    few = IDS[:5]
    run_ranks(quantize_by_rank, 3, models / "llama", tmp_path / "ranks", "outliertune-w8a8", few)
    written.quantize(models / "llama", tmp_path / "alone", "outliertune-w8a8", data=few)
    assert contents(tmp_path / "ranks") == contents(tmp_path / "alone")


def quantize_stories(world: World, model: Path, ids: torch.Tensor, folder: Path) -> None:
    for recipe in SUMMED:
        quantize_by_rank(world, model, folder / recipe, recipe, ids)


def test_recipes_that_rest_on_sums_have_the_same_perplexity(shared: Callable[[str], Path], tmp_path: Path) -> None:
    model, text = shared("models/tinystories-656k"), shared("data/tinystories.txt").read_text(encoding="utf-8")
    stories = [story for story in text.split("\n") if story.strip()]
    tokenizer = api.opened(model, "cpu").tokenizer
    tokens = tokenizer(text[:60_000], verbose=False)["input_ids"]
    ids = torch.tensor(tokens[: 24 * LENGTH]).view(24, LENGTH)
    run_ranks(quantize_stories, 2, model, ids, tmp_path / "ranks")
    for recipe in SUMMED:
        written.quantize(model, tmp_path / recipe, recipe, data=ids)
        found = [
            api.evaluate(folder, perplexity=stories[-40:], length=LENGTH)["perplexity"]
            for folder in (tmp_path / "ranks" / recipe, tmp_path / recipe)
        ]
        assert math.isclose(*found, rel_tol=1e-3), f"{recipe}: {found}"


# A rank that dies.


def dying(world: World, model: Path, output: Path, recipe: str, rank: int, moment: str) -> None:
    """One of the ranks kills itself."""

    def progress(label: str, done: int, total: int) -> None:
        if world.rank == rank and label.startswith(moment):
            os.kill(os.getpid(), signal.SIGKILL)

    quantize_by_rank(world, model, output, recipe, progress=progress)


@pytest.mark.parametrize(("rank", "recipe"), [(0, "rtn-w8a8"), (1, "outliertune-w8a8")])
def test_when_a_rank_dies_the_others_end_and_any_number_of_processes_goes_on(
    rank: int, recipe: str, models: Path, tmp_path: Path
) -> None:
    output = tmp_path / "first" / "out"
    with started_ranks(dying, 2, models / "llama", output, recipe, rank, "block 2") as ranks:
        killed, other = ranks.ended(rank), ranks.ended(1 - rank)
    assert killed.status == -signal.SIGKILL
    assert other.status == 1
    assert other.stderr.count("\n") == 1
    assert "another process of this run has stopped" in other.stderr
    assert "--resume" in other.stderr
    assert not output.exists()
    for folder in ("second", "third"):
        shutil.copytree(tmp_path / "first", tmp_path / folder)
    written.quantize(models / "llama", tmp_path / "whole", recipe)
    alone = written.quantize(models / "llama", output, recipe, resume=True)
    assert alone.resumed == 1
    run_ranks(quantize_again, 3, models / "llama", tmp_path / "second" / "out", recipe)
    for folder in ("first", "second"):
        assert contents(tmp_path / folder / "out") == contents(tmp_path / "whole")
        assert not left(tmp_path / folder / "out").exists()


def quantize_again(world: World, model: Path, output: Path, recipe: str) -> None:
    assert quantize_by_rank(world, model, output, recipe, resume=True).resumed == 1


def refused(world: World, model: Path, output: Path, spoiled: int | None) -> None:
    quantize_by_rank(world, model, output, ids=IDS + 1000 if spoiled in (None, world.rank) else IDS)


@pytest.mark.parametrize("spoiled", [None, 1])
def test_bad_input_of_any_rank_is_told_once_and_leaves_nothing(
    spoiled: int | None, models: Path, tmp_path: Path
) -> None:
    with started_ranks(refused, 2, models / "llama", tmp_path / "out", spoiled) as ranks:
        ended = [ranks.ended(rank) for rank in range(2)]
    assert [end.status for end in ended] == [2, 2]
    assert ended[0].stderr.startswith(f"{InputError.__name__}: ")
    assert "vocabulary" in ended[0].stderr
    assert ended[1].stderr.startswith("ToldByRankZero: ")
    assert not list(tmp_path.iterdir())


# The real launcher.


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny Llama with a tokenizer, and a text of several batches."""
    folder = tmp_path_factory.mktemp("story")
    model = tiny.saved(tiny.llama(), tiny.byte_tokenizer(), folder / "llama")
    (folder / "text.txt").write_text("\n".join(tiny.sentences(600)), encoding="utf-8")
    return model, folder / "text.txt"


def arguments(story: tuple[Path, Path], output: Path, *more: object) -> list[str]:
    model, text = story
    told = ("quantize", model, "--recipe", "outliertune-w8a8", "--data", text, "--output", output, *more)
    return [str(argument) for argument in told]


def test_torchrun_gives_the_bytes_of_one_process_and_one_json_object(story: tuple[Path, Path], tmp_path: Path) -> None:
    done = torchrun(2, "-m", "channelwise", *arguments(story, tmp_path / "ranks", "--json"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["output"] == str(tmp_path / "ranks")
    assert done.stderr.count("block 2 of 2") == 1
    api.quantize(story[0], recipe="outliertune-w8a8", data=story[1], output=tmp_path / "alone")
    assert contents(tmp_path / "ranks") == contents(tmp_path / "alone")


def test_two_hosts_give_the_bytes_of_one_process(
    hosts: tuple[str, str], story: tuple[Path, Path], tmp_path: Path
) -> None:
    """The namespaces share their file system, as machines that write one checkpoint do."""
    logs = [tmp_path / f"{host}.log" for host in hosts]
    rendezvous = ("--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "test")
    started = []
    for number, (host, log) in enumerate(zip(hosts, logs, strict=True)):
        # Both namespaces have this machine's name, by which torchrun would find out on which host the store is.
        is_first = ("--rdzv-conf", f"is_host={'false' if number else 'true'}")
        place = ("--rdzv-endpoint", "10.77.0.1:29400", *is_first, "--local-addr", f"10.77.0.{number + 1}")
        run = (sys.executable, "-m", "torch.distributed.run", *rendezvous, *place, "-m", "channelwise")
        with log.open("wb") as output:
            command = ["ip", "netns", "exec", host, *run, *arguments(story, tmp_path / "hosts")]
            variables = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "cable"}
            started.append(
                subprocess.Popen(
                    command, stdout=output, stderr=subprocess.STDOUT, env=variables, start_new_session=True
                )
            )
    try:
        statuses = [process.wait(timeout=240) for process in started]
    finally:
        for process in started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert statuses == [0, 0], [log.read_text()[-2000:] for log in logs]
    api.quantize(story[0], recipe="outliertune-w8a8", data=story[1], output=tmp_path / "alone")
    assert contents(tmp_path / "hosts") == contents(tmp_path / "alone")
    assert logs[0].read_text().count("block 2 of 2") == 1
    assert "block" not in logs[1].read_text()
