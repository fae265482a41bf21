"""Peak memory of `channelwise quantize` beside the bound of the design, over depth and recipes, under a hard limit.

    python benchmarks/scale/make_model.py blocks-4 /tmp/scale/blocks-4      # and blocks-16, blocks-64, 7b
    python benchmarks/scale/peak.py /tmp/scale/blocks-4 /tmp/scale/blocks-16 /tmp/scale/blocks-64
    python benchmarks/scale/peak.py /tmp/scale/7b --limit 6GiB --recipes rtn-w8a8,os-plus-w6a6,gptq-ada-w3g128 \
        --samples 8 --length 512 --threads 2

The bound is 2 × the largest block in the model's dtype + the hidden states of the calibration set at one block
boundary (at most --activation-memory, if given) + 1 GiB. A block is what the bound says; embedding and output layer,
which are a stage of their own, stand beside it as "outside".

Each run is a process of its own, on files that are not in the page cache. Resident is the most that the process ever
had in memory (VmHWM); pages of mapped files count there, libraries and weights, which the kernel drops when it needs
room. Anonymous is what it cannot drop, looked at every 20 ms. Group is the most that the process's control group held,
with all pages of files that it read or wrote: with memory to spare, that is the model and the output. --limit makes the
limit of that group hard: what does not fit is killed. Where no group can be made, RLIMIT_DATA limits what is allocated.
"""

import argparse
import json
import re
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from children import Job, Run, bundled_text, need_space
from limits import ended_by_signal
from rich import box
from rich.console import Console
from rich.table import Table
from shapes import Shape, shape_of

RECIPES = "rtn-w8a8,os-plus-w6a6,outliertune-w8a8,gptq-ada-w3g128"
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
REST = 2**30
HEADINGS = ("model", "recipe", "weights", "block", "outside", "bound", "resident", "anonymous", "group", "walk s", "s")


def size(text: str) -> int:
    """Bytes of `6GiB`, `500MB` or a plain number."""
    found = re.fullmatch(r"([0-9.]+)\s*([a-zA-Z]*)", text.strip())
    if found is None or found[2].upper() not in UNITS:
        raise argparse.ArgumentTypeError(f"{text} is no size; write 6GiB or 500MB")
    return int(float(found[1]) * UNITS[found[2].upper()])


def bound(shape: Shape, tokens: int, activation_memory: int | None) -> int:
    """The most bytes that a run may take."""
    hidden = shape.hidden_bytes(tokens)
    return 2 * shape.block_bytes + min(hidden, activation_memory or hidden) + REST


def told(model: str, recipe: str, shape: Shape, run: Run, most: int) -> tuple[str, ...]:
    """A run's row of the table, in MB."""
    sizes = (shape.model_bytes, shape.block_bytes, shape.outside_bytes, most)
    cells = [f"{bytes_ / 1e6:,.0f}" for bytes_ in sizes]
    memory = run.memory[0]
    cells += [f"{memory.resident / 1e6:,.0f}{'' if memory.resident <= most else ' (above)'}"]
    cells += [f"{memory.anonymous / 1e6:,.0f}", "" if run.group is None else f"{run.group / 1e6:,.0f}"]
    if run.status:
        return model, recipe, *cells, "killed" if run.reason == "killed" else "failed", f"{run.seconds:.1f}"
    return model, recipe, *cells, f"{run.walk_seconds:.1f}", f"{run.seconds:.1f}"


def flatness(found: list[dict[str, Any]]) -> list[str]:
    """By recipe: the peak of the deepest model over that of the shallowest, for models that differ in depth only."""
    lines = []
    for recipe in dict.fromkeys(entry["recipe"] for entry in found):
        runs = sorted((e for e in found if e["recipe"] == recipe and not e["status"]), key=lambda e: e["blocks"])
        if len(runs) > 1 and len({entry["block_bytes"] for entry in runs}) == 1:
            first, last = runs[0], runs[-1]
            parts = [
                f"{kind} {last['memory'][0][kind] / first['memory'][0][kind]:.2f} ×"
                for kind in ("resident", "anonymous")
            ]
            lines.append(f"{recipe}, {last['blocks']} blocks against {first['blocks']}: {', '.join(parts)}")
    return lines


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--recipes", default=RECIPES)
    parser.add_argument("--data", default=bundled_text(), help="calibration text; default: the bundled model's")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=size, help="hard limit, such as 6GiB")
    parser.add_argument("--at-bound", action="store_true", help="the bound is the hard limit")
    parser.add_argument("--activation-memory", type=size, help="given on to the command line")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()), help="where runs write")
    parser.add_argument("--json", type=Path, help="write all figures there")
    return parser.parse_args()


def measured(asked: argparse.Namespace, table: Table, found: list[dict[str, Any]]) -> None:
    """Runs every recipe on every model and adds its row to the table, and what it measured to `found`."""
    for model in asked.models:
        shape = shape_of(model)
        most = bound(shape, asked.samples * asked.length, asked.activation_memory)
        extra = () if asked.activation_memory is None else ("--activation-memory", str(asked.activation_memory))
        # Codes of 8 bits, and the same once more while a checkpoint is put together from its parts.
        need_space(asked.work, int(1.1 * shape.model_bytes))
        for recipe in asked.recipes.split(","):
            print(f"{model.name}, {recipe}", file=sys.stderr)
            job = Job(model, recipe, asked.data, asked.samples, asked.length, threads=asked.threads, extra=extra)
            run = job.run(asked.work, most if asked.at_bound else asked.limit)
            table.add_row(*told(model.name, recipe, shape, run, most))
            if run.status:
                print(f"{run.reason}: {run.messages[-2000:]}", file=sys.stderr)
            entry = {"model": str(model), "recipe": recipe, "blocks": shape.blocks, "block_bytes": shape.block_bytes}
            shared = {"shape": asdict(shape), "samples": asked.samples, "length": asked.length}
            found.append({**entry, **shared, "threads": asked.threads, "bound": most, **run.to_dict()})


def main() -> None:
    """Prints one table of MB, and how flat the peaks are."""
    asked = parsed()
    tokens, console = f"{asked.samples} × {asked.length} tokens", Console(width=160)
    table = Table(title=f"MB; {tokens}, {asked.threads} threads", box=box.MARKDOWN)
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in HEADINGS[:2] else "right", no_wrap=True)
    found: list[dict[str, Any]] = []
    try:
        with ended_by_signal():
            measured(asked, table, found)
    finally:  # what is measured is told even if the rest is not
        console.print(table)
        for line in [*flatness(found), *sorted({f"limit: {entry['limit_kind']}" for entry in found})]:
            console.print(line)
        if asked.json is not None:
            asked.json.write_text(json.dumps(found, indent=1) + "\n")
    if any(entry["status"] for entry in found):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
