"""What the scripts have in common on the command line, and the one table that each of them prints."""

import argparse
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

WIDTH = 180
SEPARATOR = ","


def parser_of(description: str | None, seconds: float, budget: float = 180.0) -> argparse.ArgumentParser:
    """The options that every script has; seconds: of one case, budget: of the script."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a dry run on small sizes")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--seconds", type=float, default=seconds, help="of one case, after which no round begins")
    parser.add_argument("--budget", type=float, default=budget, help="seconds after which no case begins")
    parser.add_argument("--json", type=Path, help="write all figures there, every round's among them")
    return parser


def chosen(names: Iterable[str], wanted: str | None, what: str) -> list[str]:
    """Those of `names` that `wanted` lists, separated by commas; all for None. Raises SystemExit for another name."""
    known = list(names)
    if wanted is None:
        return known
    unknown = [name for name in wanted.split(SEPARATOR) if name not in known]
    if unknown:
        raise SystemExit(f"error: no {what} {', '.join(unknown)}; there are {', '.join(known)}")
    return [name for name in known if name in wanted.split(SEPARATOR)]


def head_line(about: Mapping[str, Any]) -> str:
    """What figures depend on, in one line."""
    device, *others = about.items()
    return ", ".join([str(device[1]), *(f"{name} {value}" for name, value in others)])


class Budget:
    """The seconds of a script."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._started = seconds, time.perf_counter()
        self.left_out: list[str] = []

    def allows(self, case: str) -> bool:
        """Whether there is time for the case; else it is noted as left out."""
        if time.perf_counter() - self._started <= self._seconds:
            return True
        self.left_out.append(case)
        return False


class Findings:
    """The rows of a table and the figures behind them, printed and written once, also after a failure."""

    def __init__(self, about: dict[str, Any], asked: argparse.Namespace, title: str, headings: Sequence[str]) -> None:
        """headings: those that end in a space are of text, the others of figures."""
        self._about, self._asked = about, asked
        self._table = Table(title=title, box=box.MARKDOWN)
        for heading in headings:
            justify = "left" if heading.endswith(" ") else "right"
            self._table.add_column(heading.strip(), justify=justify, no_wrap=True)  # type: ignore[arg-type]
        self.entries: list[dict[str, Any]] = []
        self.budget = Budget(asked.budget)
        self.notes: list[str] = []
        self._wrong: list[str] = []

    def add(self, cells: Sequence[str], entry: dict[str, Any]) -> None:
        """One row."""
        self._table.add_row(*cells)
        self.entries.append(entry)

    def fault(self, line: str) -> None:
        """A result that is wrong."""
        self._wrong.append(line)

    def told(self, measure: Callable[[], None]) -> None:
        """Measures; what was found until then is printed whatever happens. Raises SystemExit if a result was wrong."""
        try:
            measure()
        finally:
            self._print()
        if self._wrong:
            raise SystemExit(1)

    def _print(self) -> None:
        console = Console(width=WIDTH)
        console.print(head_line(self._about), soft_wrap=True)
        console.print(self._table)
        left_out, notes = self.budget.left_out, [*self.notes, *self._wrong]
        for note in [*notes, *([f"no time left for: {', '.join(left_out)}"] if left_out else [])]:
            console.print(note, markup=False, soft_wrap=True)
        if self._asked.json is not None:
            options = {key: str(value) for key, value in vars(self._asked).items()}
            found = {"about": self._about, "asked": options, "entries": self.entries, "notes": notes}
            self._asked.json.write_text(json.dumps({**found, "left_out": left_out}, indent=1) + "\n")
