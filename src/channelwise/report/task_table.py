"""What `evaluate --tasks` found, as a table that keeps its shape from 60 columns up."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from channelwise.report.format import MISSING, number
from channelwise.report.tables import plain_table

_COUNTS = ("documents", "cut")
_SHARES = ("acc", "exact_match", "f1")
"""How the harness's names of shares of all documents begin; people read those in per cent."""


def task_table(tasks: Mapping[str, Mapping[str, Any]], width: int) -> Table:
    """A row for each metric of each task, with its standard error."""
    table = plain_table(width)
    table.add_column("task", no_wrap=True)
    table.add_column("metric", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("± error", justify="right", no_wrap=True)
    table.add_column("documents", justify="right", no_wrap=True)
    for task, figures in tasks.items():
        head, count = task, f"{figures['documents']:,}"
        for metric, value, error in _metrics(figures):
            table.add_row(head, metric, _shown(metric, value), _shown(metric, error), count)
            head, count = "", ""
    return table


def task_remark(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """One line on the documents that did not fit the model's window; empty where all did."""
    cut = [f"{task} {figures['cut']:,}" for task, figures in tasks.items() if figures["cut"]]
    return f"longer than the model's window, cut on the left: {', '.join(cut)}" if cut else ""


def _metrics(figures: Mapping[str, Any]) -> Iterator[tuple[str, float | None, float | None]]:
    """(metric, value, standard error), in the harness's order."""
    for name, value in figures.items():
        metric, comma, strainer = name.partition(",")
        if name not in _COUNTS and not metric.endswith("_stderr"):
            yield name, value, figures.get(f"{metric}_stderr{comma}{strainer}")


def _shown(metric: str, value: float | None) -> str:
    if value is None:
        return MISSING
    return f"{100 * value:.1f} %" if metric.startswith(_SHARES) else number(value, 3)
