"""Several ranks against one process on the same cores: wall time, efficiency, peak memory of each rank.

    python benchmarks/scale/ranks.py /tmp/scale/blocks-4 /tmp/scale/blocks-16
    python benchmarks/scale/ranks.py /tmp/scale/7b --recipes rtn-w8a8 --ranks 1,2 --cores 2 --samples 8 --rounds 1

With --cores 2 one process runs with two threads, two ranks of `torchrun --nproc-per-node 2` with one each. In every
round each of them runs once, in an order drawn anew; figures are medians over the rounds. The walk is what --json calls
seconds: the quantization alone. The efficiency of N ranks is the walk's time of one process divided by theirs, the
median of the rounds' ratios: 1 loses nothing to the exchange, and above 1 ranks use the cores better than threads do.
Memory is what peak.py calls resident and anonymous, the most of the rounds, rank by rank.
"""

import argparse
import json
import random
import statistics
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
from shapes import shape_of

HEADINGS = ("model", "recipe", "ranks × threads", "walk s", "range", "s", "efficiency", "resident MB", "anonymous MB")


def rounds_of(jobs: dict[int, Job], rounds: int, work: Path) -> dict[int, list[Run]]:
    """Every job once in a round. Raises SystemExit with its last message if one fails."""
    found: dict[int, list[Run]] = {ranks: [] for ranks in jobs}
    order, shuffle = list(jobs), random.Random(0)
    for number in range(rounds):
        shuffle.shuffle(order)
        for ranks in order:
            job = jobs[ranks]
            print(f"{job.model.name}, {job.recipe}, {ranks} ranks, round {number + 1}", file=sys.stderr)
            run = job.run(work)
            if run.status:
                raise SystemExit(f"{run.messages[-2000:]}\nerror: {ranks} ranks on {job.model}: {run.reason}")
            found[ranks].append(run)
    return found


def efficiency(single: list[Run], several: list[Run]) -> float:
    """The median of the rounds' ratios of the walk."""
    return statistics.median(s.walk_seconds / r.walk_seconds for s, r in zip(single, several, strict=True))


def told(job: Job, runs: list[Run], single: list[Run] | None) -> tuple[str, ...]:
    """A row of the table."""
    walks = sorted(run.walk_seconds for run in runs)
    ranks = list(zip(*(run.memory for run in runs), strict=True))
    resident = ", ".join(f"{max(m.resident for m in rank) / 1e6:,.0f}" for rank in ranks)
    anonymous = ", ".join(f"{max(m.anonymous for m in rank) / 1e6:,.0f}" for rank in ranks)
    return (
        *(job.model.name, job.recipe, f"{job.ranks} × {job.threads}"),
        *(f"{statistics.median(walks):.1f}", f"{walks[0]:.1f}–{walks[-1]:.1f}"),
        f"{statistics.median(run.seconds for run in runs):.1f}",
        "" if single is None else f"{efficiency(single, runs):.2f}",
        *(resident, anonymous),
    )


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--recipes", default="rtn-w8a8,os-plus-w6a6,gptq-ada-w3g128")
    parser.add_argument("--ranks", default="1,2", help="numbers of ranks, separated by commas")
    parser.add_argument("--cores", type=int, default=2, help="threads of all ranks together")
    parser.add_argument("--data", default=bundled_text(), help="calibration text; default: the bundled model's")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()), help="where runs write")
    parser.add_argument("--json", type=Path, help="write all figures there")
    return parser.parse_args()


def jobs_of(asked: argparse.Namespace, model: Path, recipe: str) -> dict[int, Job]:
    """By number of ranks; each divides the cores. Raises SystemExit for a number that does not divide them."""
    found = {}
    for ranks in map(int, asked.ranks.split(",")):
        threads, rest = divmod(asked.cores, ranks)
        if rest or not threads:
            raise SystemExit(f"error: {asked.cores} cores cannot be divided over {ranks} ranks")
        found[ranks] = Job(model, recipe, asked.data, asked.samples, asked.length, ranks, threads)
    return found


def measured(asked: argparse.Namespace, model: Path, recipe: str, table: Table) -> list[dict[str, Any]]:
    """Runs one recipe on one model with each number of ranks and adds the rows to the table."""
    need_space(asked.work, int(1.1 * shape_of(model).model_bytes))
    jobs = jobs_of(asked, model, recipe)
    found = rounds_of(jobs, asked.rounds, asked.work)
    results = []
    for ranks, runs in found.items():
        single = found.get(1) if ranks > 1 else None
        table.add_row(*told(jobs[ranks], runs, single))
        about = {**asdict(jobs[ranks]), "model": str(model), "shape": asdict(shape_of(model))}
        ratio = None if single is None else efficiency(single, runs)
        results.append({**about, "efficiency": ratio, "runs": [run.to_dict() for run in runs]})
    return results


def main() -> None:
    """Prints one table."""
    asked = parsed()
    table = Table(title=f"{asked.samples} × {asked.length} tokens, medians of {asked.rounds} rounds", box=box.MARKDOWN)
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in HEADINGS[:2] else "right", no_wrap=True)
    results: list[dict[str, Any]] = []
    try:
        with ended_by_signal():
            for model in asked.models:
                for recipe in asked.recipes.split(","):
                    results += measured(asked, model, recipe, table)
    finally:  # what is measured is told even if the rest is not
        Console(width=180).print(table)
        if asked.json is not None:
            asked.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
