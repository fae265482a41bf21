"""The scripts in examples/, run as a user would: as they stand, without network, in a folder of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "examples"
NAMES = ("quantize_and_load", "compare_recipes", "own_method")
LINES = 60


def output_of(name: str, folder: Path) -> str:
    """Standard output of one script, which must leave nothing in the folder that it runs in."""
    settings = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, str(FOLDER / f"{name}.py")]
    done = subprocess.run(
        command, cwd=folder, env=settings, capture_output=True, text=True, encoding="utf-8", timeout=900
    )
    assert done.returncode == 0, done.stderr
    assert not list(folder.iterdir())
    return done.stdout


def ratios(output: str, pattern: str) -> dict[str, float]:
    return {name: float(ratio) for name, ratio in re.findall(pattern, output, flags=re.MULTILINE)}


def test_there_are_no_others() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_short(name: str) -> None:
    assert len((FOLDER / f"{name}.py").read_text(encoding="utf-8").splitlines()) < LINES


def test_quantize_and_load(tmp_path: Path) -> None:
    output = output_of("quantize_and_load", tmp_path)
    assert "outliertune-w6a6: 14.7 MB → 7.1 MB" in output
    (ratio,) = re.findall(r"([\d.]+) times the original's", output)
    assert 1 < float(ratio) < 1.1
    assert "def read_lines(path):" in output


def test_compare_recipes(tmp_path: Path) -> None:
    output = output_of("compare_recipes", tmp_path)
    found = ratios(output, r"^(\S+-w6a6\S*) .* × ([\d.]+)$")
    # The nearest to the original first; eight bits at out and down lose less than six, and plain rounding breaks it.
    assert list(found) == ["outliertune-w6a6-down8", "outliertune-w6a6", "rtn-w6a6"]
    assert 1 < found["outliertune-w6a6-down8"] < found["outliertune-w6a6"] < 1.1 < 2 < found["rtn-w6a6"]


def test_own_method(tmp_path: Path) -> None:
    found = ratios(output_of("own_method", tmp_path), r"^(\S+): ([\d.]+) times")
    assert set(found) == {"smoothquant-w6a6", "searched-w6a6"}
    # Another method is at work, and a search that has the fixed power's neighbours among its candidates breaks nothing.
    assert found["searched-w6a6"] != found["smoothquant-w6a6"]
    assert 1 < found["searched-w6a6"] < 2
