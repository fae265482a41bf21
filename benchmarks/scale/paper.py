"""What a model far too large for this machine would take on some machines like it, on paper: which term dominates.

    python benchmarks/scale/rates.py --threads 2 --json rates.json
    python benchmarks/scale/peak.py /tmp/scale/7b --recipes gptq-ada-w3g128 --threads 2 --json 7b.json
    python benchmarks/scale/paper.py 405b --recipe gptq-ada-w3g128 --rates rates.json --measured 7b.json

The operations and bytes of one block are counted by the formulas of costs.py and divided by the rates of rates.py. With
--measured, the runs of peak.py on the same recipe correct that: each phase of the walk (read, sites, statistics,
choose, round, advance, write) is multiplied by what it took, over what the formulas give for the measured model; the
first table tells both. Measure a model of large blocks: on small ones calls take the time, not numbers. --speed is how
many times as fast a machine computes as the measured one, in all kinds alike: an assumption, to be replaced by the
rates of such a machine. Disk and network are as given, or as measured.

Machines are ranks: each reads every block from a disk of its own, runs its share of the samples, and rounds its share
of each weight's rows. Parts that are not divided, such as finding sites, are every rank's.
"""

import argparse
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from costs import Term, Work, block_terms, outside_terms, peak_bytes, seconds, work_of
from rich import box
from rich.console import Console
from rich.table import Table
from shapes import PRESETS, Shape

DISK_OR_NETWORK = ("disk read", "disk write", "network")
DISK_PHASES = ("read", "write")
UNITS = {"extremes": "numbers", "quantize": "weights", "steps": "weights"}

Rates = Mapping[str, float]


def by_phase(terms: list[Term], times: Mapping[str, float]) -> dict[str, float]:
    """Sums of the terms' seconds."""
    found: dict[str, float] = {}
    for term in terms:
        found[term.phase] = found.get(term.phase, 0.0) + times[term.name]
    return found


def expected(shape: Shape, work: Work, rates: Rates, ranks: int) -> dict[str, float]:
    """Seconds of a whole run by phase, after the formulas alone."""
    block, outside = block_terms(shape, work), outside_terms(shape)
    blocks = by_phase(block, seconds(block, rates, ranks, work.batches))
    rest = by_phase(outside, seconds(outside, rates, ranks, work.batches))
    return {phase: shape.blocks * taken + rest.get(phase, 0.0) for phase, taken in blocks.items()}


def compared(path: Path, recipe: str, rates: Rates) -> list[tuple[Shape, dict[str, float], dict[str, float]]]:
    """By measured run of the recipe: the shape, seconds by phase after the formulas, and as measured.

    Raises SystemExit if no run of the recipe tells its phases.
    """
    found = []
    for run in json.loads(path.read_text()):
        phases = run.get("phases") or run.get("answer", {}).get("phases")
        if run["recipe"] != recipe or run.get("status") or not phases:
            continue
        shape, work = Shape(**run["shape"]), work_of(recipe, run["samples"], run["length"])
        found.append((shape, expected(shape, work, rates, run.get("ranks", 1)), phases))
    if not found:
        raise SystemExit(f"error: {path} has no finished run of {recipe} with phases")
    return found


def corrections(runs: list[tuple[Shape, dict[str, float], dict[str, float]]]) -> dict[str, float]:
    """By phase: measured over expected, the median of the runs; of what takes time in both.

    Not below 1 for the disk: a mapped file is read when its numbers are first used, in another phase.
    """
    ratios: dict[str, list[float]] = {}
    for _, paper, measured in runs:
        for phase, taken in paper.items():
            if taken and measured.get(phase):
                ratios.setdefault(phase, []).append(measured[phase] / taken)
    found = {phase: statistics.median(ratio) for phase, ratio in ratios.items()}
    return {phase: max(1.0, ratio) if phase in DISK_PHASES else ratio for phase, ratio in found.items()}


def comparison_table(runs: list[tuple[Shape, dict[str, float], dict[str, float]]], recipe: str) -> Table:
    """What the formulas give for the measured models beside what they took."""
    table = Table(title=f"{recipe}: seconds of whole runs", box=box.MARKDOWN)
    for heading in ("hidden", "blocks", "phase", "formulas", "measured", "ratio"):
        table.add_column(heading, justify="left" if heading == "phase" else "right")
    for shape, paper, measured in runs:
        for phase, taken in paper.items():
            real = measured.get(phase, 0.0)
            ratio = f"{real / taken:.2f}" if taken else ""
            table.add_row(f"{shape.hidden:,}", str(shape.blocks), phase, f"{taken:,.1f}", f"{real:,.1f}", ratio)
    return table


def term_table(shape: Shape, work: Work, rates: Rates, correction: Rates, machines: list[int], title: str) -> Table:
    """Seconds of each term of one block, by number of machines, and hours of the whole model."""
    table = Table(title=title, box=box.MARKDOWN)
    table.add_column("term")
    table.add_column("formula")
    table.add_column("amount", justify="right")
    for number in machines:
        table.add_column(f"s, {number}", justify="right")
        table.add_column("share", justify="right")
    terms = block_terms(shape, work)
    times = {
        number: {
            term.name: taken * _correction(term, correction)
            for term, taken in zip(terms, seconds(terms, rates, number, work.batches).values(), strict=True)
        }
        for number in machines
    }
    for term in terms:
        unit = "FLOP" if term.rate not in (*UNITS, *DISK_OR_NETWORK) else UNITS.get(term.rate, "B")
        cells = []
        for number in machines:
            total = sum(times[number].values())
            cells += [f"{times[number][term.name]:,.1f}", f"{times[number][term.name] / total:.1%}"]
        table.add_row(term.name, term.why, f"{_scaled(term.amount)}{unit}", *cells)
    totals, hours, longest = [], [], []
    for number in machines:
        total = sum(times[number].values())
        totals += [f"{total:,.1f}", "100.0%"]
        hours += [_time(total * shape.blocks), ""]
        longest += [max(times[number], key=times[number].__getitem__), ""]
    table.add_row("one block", "", "", *totals)
    table.add_row(f"all {shape.blocks} blocks", "", "", *hours)
    table.add_row("dominates", "", "", *longest)
    return table


def memory_table(shape: Shape, work: Work, machines: list[int]) -> Table:
    """The large parts of a rank's memory in GB."""
    table = Table(title="GB of memory of each machine", box=box.MARKDOWN)
    table.add_column("part")
    for number in machines:
        table.add_column(f"{number}", justify="right")
    parts = {number: peak_bytes(shape, work, number) for number in machines}
    for name in parts[machines[0]]:
        table.add_row(name, *(f"{parts[number][name] / 1e9:,.1f}" for number in machines))
    return table


def _correction(term: Term, correction: Rates) -> float:
    """Of a phase's computing, or of the disk where that is the phase; nothing is known of an exchange."""
    alike = (term.rate in DISK_OR_NETWORK) == (term.phase in DISK_PHASES)
    return correction.get(term.phase, 1.0) if alike else 1.0


def _time(seconds_: float) -> str:
    """Days, hours or minutes."""
    for unit, size in (("days", 86400), ("h", 3600)):
        if seconds_ >= size:
            return f"{seconds_ / size:,.1f} {unit}"
    return f"{seconds_ / 60:,.1f} min"


def _scaled(amount: float) -> str:
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if amount >= size:
            return f"{amount / size:,.1f} {prefix}"
    return f"{amount:,.0f} "


def read_rates(asked: argparse.Namespace) -> dict[str, float]:
    """As measured, computing --speed times as fast; disk and network as given."""
    rates: dict[str, Any] = json.loads(asked.rates.read_text())["rates"]
    found = {name: rate * (1 if name in DISK_OR_NETWORK else asked.speed) for name, rate in rates.items()}
    found["network"] = asked.network * 1e9 / 8
    for name, given in (("disk read", asked.disk_read), ("disk write", asked.disk_write)):
        if given is not None:
            found[name] = given * 1e9
    return found


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=PRESETS)
    parser.add_argument("--recipe", default="gptq-ada-w3g128")
    parser.add_argument("--rates", type=Path, required=True, help="what rates.py --json wrote")
    parser.add_argument("--measured", type=Path, help="what peak.py --json wrote")
    parser.add_argument("--machines", default="1,8", help="numbers of machines, separated by commas")
    parser.add_argument("--samples", type=int, help="default: the recipe's")
    parser.add_argument("--length", type=int, help="tokens of a sample; default: the recipe's")
    parser.add_argument("--speed", type=float, default=1.0, help="of a machine, in units of the measured one")
    parser.add_argument("--network", type=float, default=10.0, help="Gbit/s of each machine")
    parser.add_argument("--disk-read", type=float, help="GB/s; default: as measured")
    parser.add_argument("--disk-write", type=float, help="GB/s; default: as measured")
    return parser.parse_args()


def main() -> None:
    """Prints what the formulas give for what was measured, and for the shape."""
    asked = parsed()
    console, shape = Console(width=180), PRESETS[asked.shape]
    machines = [int(number) for number in asked.machines.split(",")]
    work = work_of(asked.recipe, asked.samples, asked.length)
    correction: dict[str, float] = {}
    if asked.measured is not None:
        as_measured = {**json.loads(asked.rates.read_text())["rates"], "network": asked.network * 1e9 / 8}
        runs = compared(asked.measured, asked.recipe, as_measured)
        correction = corrections(runs)
        console.print(comparison_table(runs, asked.recipe))
    title = (
        f"{asked.shape}, {asked.recipe}, {work.tokens:,} tokens: one block, on {asked.machines} machines, "
        f"{asked.speed:g} × the measured one, {asked.network:g} Gbit/s"
    )
    console.print(term_table(shape, work, read_rates(asked), correction, machines, title))
    console.print(memory_table(shape, work, machines))


if __name__ == "__main__":
    main()
