"""Benchmarks that take seconds at tiny sizes print their tables; what they measure says nothing here."""

import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.cli import tiny

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., str]]:
    """Standard output of a script, run as a user would; threads stay as they were."""

    def run(script: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        monkeypatch.syspath_prepend(str((FOLDER / script).parent))
        runpy.run_path(str(FOLDER / script), run_name="__main__")
        return capsys.readouterr().out

    threads = torch.get_num_threads()
    yield run
    torch.set_num_threads(threads)


def test_the_time_of_quantization_tells_what_solving_takes(printed: Callable[..., str], tmp_path: Path) -> None:
    model = tiny.saved(tiny.llama(hidden_size=128, intermediate_size=128), tiny.byte_tokenizer(), tmp_path / "llama")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(tiny.sentences(20)), encoding="utf-8")
    recipes = ("rtn-w8a8", "gptq-ada-w3g128")
    table = printed("quantization_time.py", model, "--data", text, "--runs", 1, "--recipes", ",".join(recipes))
    rows = [line.split("│")[1:-1] for line in table.splitlines() if line.startswith("│")]
    solving = {row[0].strip(): float(row[4]) for row in rows}
    assert set(solving) == set(recipes)
    assert solving["rtn-w8a8"] == 0 < solving["gptq-ada-w3g128"]


def test_the_cost_of_a_candidate_has_a_row_for_each_shape(printed: Callable[..., str]) -> None:
    table = printed("cpu/candidates.py", "--shapes", "24x16,8x40", "--tokens", 8, "--rounds", 1, "--threads", 1)
    rows = [line.split("│")[1:3] for line in table.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row] for row in rows] == [["24", "16"], ["8", "40"]]
