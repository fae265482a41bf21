"""Runs that write a checkpoint, for tests: tiny models on disk, interruptions, kills; and what was written."""

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from channelwise import api
from channelwise.engine.world import World
from channelwise.model.batches import read_data
from channelwise.quantizing import Order, Written, write_quantized
from channelwise.recipe import Recipe, load_recipe
from tests.model.tiny_models import tiny_model

SETTINGS = {
    "gptq-ada-w3g128": ("weights.group_size=16",),
    "llm-fp4-w4a4": ("search_tokens=64",),
    "os-plus-w6a6": ("search_tokens=64",),
}
"""What makes a recipe fit tiny models, and quick."""
IDS = torch.randint(3, 64, (100, 48), generator=torch.Generator().manual_seed(1))
"""Calibration tokens, three batches of them."""


def recipe(name: str, *settings: str) -> Recipe:
    return load_recipe(name, [*SETTINGS.get(name, ()), *settings])


def saved(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """The directory of a tiny random model without a tokenizer."""
    tiny_model(name, dtype).save_pretrained(folder)
    return folder


def wide_llama(folder: Path) -> Path:
    """The directory of a Llama whose tensors are too large to be told apart by a few pages of them."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=256, **sizes))
    model.save_pretrained(folder)
    return folder


def quantize(model: Path, output: Path, name: str = "rtn-w8a8", *settings: str, **options: Any) -> api.QuantizeResult:
    """`api.quantize` of a tiny model; options are its own."""
    given = {"data": IDS, "samples": len(IDS), **options}
    return api.quantize(model, recipe=recipe(name, *settings), output=output, **given)


def quantize_by_rank(
    world: World, model: Path, output: Path, name: str = "rtn-w8a8", ids: torch.Tensor = IDS, **options: Any
) -> Written:
    """One rank's part of the same."""
    order = Order(model, recipe(name), read_data(ids), output, samples=len(ids), **options)
    return write_quantized(order, world)


def stopping_at(label: str, error: type[BaseException] = KeyboardInterrupt) -> Callable[[str, int, int], None]:
    """A progress that raises when it is told of this."""

    def progress(told: str, done: int, total: int) -> None:
        if told.startswith(label):
            raise error

    return progress


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def left(output: Path) -> Path:
    """The working directory of a run into `output`."""
    return output.with_name(f".{output.name}.unfinished")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`models("llama")`: the directory of a tiny model; "wide" is `wide_llama`."""
    folder = tmp_path_factory.mktemp("models")

    def find(name: str) -> Path:
        if not (folder / name).exists():
            (wide_llama if name == "wide" else lambda path: saved(name, path))(folder / name)
        return folder / name

    return find


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny models gain nothing from threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass
class Killed:
    """What came of runs that were killed: the seconds of a whole one, how many stages were found after each kill.

    wrong: outputs that differ from the one of the run that was not killed.
    """

    seconds: float
    found: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def kill_often(model: Path, folder: Path, name: str, seed: int, kills: int) -> Killed:
    """Kills runs at so many moments at least, spread over a run's length; each is resumed until it is done.

    For a process that does nothing else: it forks, and may have one thread only.
    """
    torch.set_num_threads(1)
    quantize(model, folder / "whole", name)  # the first is slower, as it imports
    whole = contents(folder / "whole")
    began = time.monotonic()
    assert not _killed_run(model, folder / "timed", name, float("inf"))
    result, chance = Killed(time.monotonic() - began), random.Random(seed)
    for number, share in enumerate(_spread(chance, kills)):
        output = folder / str(number)
        moments = [share * result.seconds, float("inf")]
        if number % 3 == 0:  # killed again when it is resumed
            moments.insert(1, chance.random() * result.seconds)
        for moment in moments:
            if not _killed_run(model, output, name, moment):
                break
            result.found.append(_found(output))
        if contents(output) != whole or left(output).exists():
            result.wrong.append(f"{number}: {sorted(contents(output))}")
        if len(result.found) >= kills and number >= kills - 1:
            break
    return result


def _spread(chance: random.Random, count: int) -> Iterator[float]:
    """Shares of a run's length: one in each of so many equal parts, in any order, and so on."""
    while True:
        parts = list(range(count))
        chance.shuffle(parts)
        for part in parts:
            yield (part + chance.random()) / count


def _killed_run(model: Path, output: Path, name: str, moment: float) -> bool:
    """Whether a run in a process of its own was killed so many seconds after its beginning, or had ended by then."""
    process = os.fork()
    if process == 0:
        status = 1
        try:
            quantize(model, output, name, resume=True)
            status = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)
    end = time.monotonic() + moment
    while time.monotonic() < end:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            assert status == 0, f"{output} failed"
            return False
        time.sleep(0.001)
    os.kill(process, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(process, 0)[1])


def _found(output: Path) -> str:
    """How far a killed run had come."""
    journal = left(output) / "journal.jsonl"
    if not journal.exists():
        return "done" if output.exists() else "nothing"
    lines = journal.read_text().count("\n") - 1
    return f"{lines} stages" + (", assembling" if (left(output) / "model").exists() else "")
