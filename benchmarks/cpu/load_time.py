"""How long a checkpoint of the 1B shape takes to load, packed for the kernels, in a process of its own.

    python benchmarks/cpu/load_time.py [--size 1b] [--recipes w8a8,w4,w3] [--rounds 5] [--threads 2]

Writes a Llama with random codes (`llama.py`) into a temporary folder, then loads it --rounds times, each in a new
process, in turn with the others. load is `channelwise.load`: reading, and packing into panels; import is that of
channelwise, torch and transformers before it. Files were just written, so they come from the page cache. The median is
told, with the lowest and the highest.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from llama import RECIPES, SIZES, random_llama
from rich.table import Table
from timing import chosen, head_line, machine, wide_console

from channelwise.checkpoint.writer import save_checkpoint
from channelwise.recipe import load_recipe

LOADING = """
import json, sys, time
begun = time.perf_counter()
import torch, transformers
torch.set_num_threads(int(sys.argv[2]))
import channelwise
from channelwise.runtime.cpu.library import available
available()
imported = time.perf_counter()
model, _ = channelwise.load(sys.argv[1])
loaded = time.perf_counter()
with torch.no_grad():
    model(torch.zeros(1, 8, dtype=torch.long))
print(json.dumps([imported - begun, loaded - imported, time.perf_counter() - loaded]))
"""


def written(name: str, size: str, folder: Path) -> Path:
    """The checkpoint of a recipe, in `folder`."""
    directory = folder / name
    recipe = load_recipe("rtn-w8a8").model_dump(mode="json")
    model = random_llama(size, RECIPES[name])
    save_checkpoint(model, None, directory, recipe=recipe, source_name="random", record={}, overwrite=False)
    return directory


def seconds(directory: Path, threads: int) -> list[float]:
    """Import, load, first call, in a new process."""
    command = [sys.executable, "-c", LOADING, str(directory), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"loading {directory.name} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Writes, loads, and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=[*SIZES], default="1b")
    parser.add_argument("--recipes", default="w8a8,w4,w3")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    asked = parser.parse_args()
    names = chosen(RECIPES, asked.recipes, "recipe")
    console = wide_console()
    console.print(head_line(machine()))
    with tempfile.TemporaryDirectory() as folder:
        directories = {name: written(name, asked.size, Path(folder)) for name in names}
        times: dict[str, list[list[float]]] = {name: [] for name in names}
        for _ in range(asked.rounds):
            for name, directory in directories.items():
                times[name].append(seconds(directory, asked.threads))
        sizes = {
            name: sum(path.stat().st_size for path in folder.iterdir()) / 1e6 for name, folder in directories.items()
        }
    table = Table(title=f"{asked.size}, seconds")
    for heading in ("model", "MB on disk", "import", "load", "load, range", "first call"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for name, rounds in times.items():
        imports, loads, calls = (sorted(column) for column in zip(*rounds, strict=True))
        cells = [f"{statistics.median(column):.2f}" for column in (imports, loads, calls)]
        table.add_row(name, f"{sizes[name]:,.0f}", cells[0], cells[1], f"{loads[0]:.2f}–{loads[-1]:.2f}", cells[2])
    console.print(table)


if __name__ == "__main__":
    main()
