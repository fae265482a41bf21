"""How long `channelwise quantize` takes on a random model of the 7B shape, by recipe.

    PYTHONPATH=src python benchmarks/gpu/quantize_7b.py [--recipes rtn-w8a8,gptq-ada-w3g128] [--json FILE]
    PYTHONPATH=src python benchmarks/gpu/quantize_7b.py --blocks 4 --limit 150
    PYTHONPATH=src python benchmarks/gpu/quantize_7b.py --device cpu          (a dry run on a tiny model)

The whole package is needed, with all that pyproject.toml lists, and 13.5 GB of disk for the model, as much again for a
quantized one. The model is made by benchmarks/scale/make_model.py where --model is not there yet. Each run is a process
of its own; `s` is all of it, imports, reading and writing included, `walk s` the quantization alone. Samples and length
are the recipe's, cut where the calibration text ends. --blocks makes a model of fewer blocks; `scaled` is then
the walk's time for all blocks, in proportion. A run that takes longer than --limit seconds is ended and told as such.

aim: minutes that a run on all blocks is meant to take at most. A cell that has an aim ends in ✓ or ✗.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from devices import device_of
from tables import Findings, chosen, parser_of

ROOT = Path(__file__).resolve().parents[2]
MAKE_MODEL = ROOT / "benchmarks" / "scale" / "make_model.py"

AIMS = {"rtn-w8a8": 2.0, "outliertune-w8a8": 2.0, "os-plus-w6a6": 10.0, "gptq-ada-w3g128": 15.0}
"""Minutes, by recipe."""

PRESETS = {"cuda": "7b", "cpu": "tiny"}
HEADINGS = ("recipe ", "blocks", "walk s", "s", "scaled min", "aim min", "bits per weight", "status ")


@dataclass(frozen=True)
class Run:
    """seconds: of the process; answer: what it printed as JSON, empty unless it is done; status: in a word."""

    seconds: float
    answer: dict[str, Any]
    status: str


def made_model(asked: argparse.Namespace) -> Path:
    """The model's folder, made where it is missing. Raises CalledProcessError if that fails."""
    preset = PRESETS[asked.device]
    name = preset if asked.blocks is None else f"{preset}-{asked.blocks}-blocks"
    folder: Path = asked.model or asked.work / name
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        blocks = [] if asked.blocks is None else ["--blocks", str(asked.blocks)]
        subprocess.run([sys.executable, str(MAKE_MODEL), preset, str(folder), *blocks], check=True, stdout=sys.stderr)
    return folder


def run(model: Path, recipe: str, asked: argparse.Namespace) -> Run:
    """One quantization in a process of its own; what it wrote is removed."""
    with tempfile.TemporaryDirectory(dir=asked.work) as folder:
        command = [sys.executable, "-m", "channelwise", "quantize", str(model), "--recipe", recipe]
        command += ["--data", asked.data, "--output", str(Path(folder) / "output"), "--device", asked.device, "--json"]
        for name in ("samples", "length"):
            if getattr(asked, name) is not None:
                command += [f"--{name}", str(getattr(asked, name))]
        begun = time.perf_counter()
        try:
            done = subprocess.run(
                command,
                stdout=subprocess.PIPE,
                text=True,
                timeout=asked.limit,
                env={**os.environ, "HF_HUB_OFFLINE": "1"},
            )
        except subprocess.TimeoutExpired:
            return Run(time.perf_counter() - begun, {}, f"ended after {asked.limit:.0f} s")
        seconds = time.perf_counter() - begun
    if done.returncode:
        return Run(seconds, {}, f"failed ({done.returncode})")
    return Run(seconds, json.loads(done.stdout), "done")


def blocks_of(model: Path) -> int:
    """How many blocks a model has."""
    return int(json.loads((model / "config.json").read_text())["num_hidden_layers"])


def add(recipe: str, blocks: int, all_blocks: int, found: Run, findings: Findings) -> None:
    """One row."""
    aim, walk = AIMS[recipe], found.answer.get("seconds")
    cells = [recipe, str(blocks), "" if walk is None else f"{walk:,.1f}", f"{found.seconds:,.1f}"]
    whole = None if walk is None else found.seconds - walk + walk * all_blocks / blocks
    mark = "" if whole is None else " ✓" if whole <= 60 * aim else " ✗"
    cells += ["" if whole is None else f"{whole / 60:.2f}{mark}", f"{aim:g}"]
    cells += [f"{found.answer['bits_per_weight']:.2f}" if found.answer else "", found.status]
    answer = {key: value for key, value in found.answer.items() if key != "sites"}
    entry = {"recipe": recipe, "blocks": blocks, "seconds": found.seconds, "scaled_seconds": whole}
    findings.add(cells, {**entry, "aim_minutes": aim, "status": found.status, "answer": answer})


def measure(asked: argparse.Namespace, findings: Findings) -> None:
    """Recipe by recipe."""
    model = made_model(asked)
    try:
        blocks = blocks_of(model)
        for recipe in chosen(AIMS, asked.recipes, "recipe"):
            if findings.budget.allows(recipe):
                add(recipe, blocks, asked.all_blocks or blocks, run(model, recipe, asked), findings)
    finally:
        if asked.model is None and not asked.keep:
            shutil.rmtree(model)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = parser_of(__doc__, seconds=0.0, budget=3600.0)
    parser.add_argument("--model", type=Path, help="a model's folder; without it one is made, and removed afterwards")
    parser.add_argument("--keep", action="store_true", help="keep the model that was made")
    parser.add_argument("--blocks", type=int, help="of the model that is made, fewer than its 32")
    parser.add_argument("--all-blocks", type=int, help="what `scaled` is scaled to; default 32, dry run: the model's")
    parser.add_argument("--recipes", help=f"of {', '.join(AIMS)}")
    text = str(files("channelwise") / "bundled" / "calibration.txt")
    parser.add_argument("--data", default=text, help="calibration text; default: the bundled model's")
    parser.add_argument("--samples", type=int)
    parser.add_argument("--length", type=int)
    parser.add_argument("--limit", type=float, help="seconds of one run")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()), help="where runs write")
    asked = parser.parse_args()
    if asked.all_blocks is None and asked.device == "cuda":
        asked.all_blocks = 32
    return asked


def main() -> None:
    """Prints one table."""
    asked = parsed()
    title = f"channelwise quantize on a random {PRESETS[asked.device]} model"
    findings = Findings(device_of(asked.device).about(), asked, title, HEADINGS)
    findings.told(lambda: measure(asked, findings))


if __name__ == "__main__":
    main()
