"""Results as rich tables that keep their shape from 60 columns up."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from channelwise.report.format import MISSING, duration, megabytes, number

Results = Mapping[str, Any]
NARROW = 80
"""Below so many columns a table leaves out what can be missed best."""

GOOD, FAIR = 1.01, 1.10
"""Perplexity ratios up to which a recipe is shown as good, as fair; beyond, as bad."""


@dataclass(frozen=True)
class _Column:
    """A heading, and how an entry of a model's results is shown; `key.part` is an entry within an entry.

    sacrifice: the higher, the sooner it is left out. legend: what the heading means, where it does not say.
    """

    heading: str
    key: str
    show: Callable[[Any], str | Text]
    sacrifice: int = 0
    legend: str = ""


def _bytes(value: int | None) -> str:
    return MISSING if value is None else megabytes(value)


def _time(value: float | None) -> str:
    return MISSING if value is None else duration(value)


def _ratio(value: float | None) -> Text:
    """The perplexity over the floating-point one's, coloured by how much is lost."""
    if value is None:
        return Text(MISSING)
    style = "green" if value <= GOOD else "yellow" if value <= FAIR else "red"
    return Text(number(value, 4 if value < 10 else 1), style=style)


def percent(share: float | None) -> str:
    """`81.4 %`."""
    return MISSING if share is None else f"{100 * share:.1f} %"


_LANGUAGE = (
    _Column("perplexity", "perplexity", lambda value: number(value, 3)),
    _Column("× FP", "perplexity_ratio", _ratio, legend="perplexity over the original's"),
)
_EMBEDDINGS = (
    _Column("cosine", "cosine_mean", lambda value: number(value, 4)),
    _Column("lowest", "cosine_min", lambda value: number(value, 4), sacrifice=5),
    _Column("probe", "probe_accuracy", percent, sacrifice=3),
)
_CLASSES = (
    _Column("accuracy", "accuracy", percent),
    _Column("agreement", "agreement", percent, legend="share of the original's answers"),
)
_TASKS = (_Column("tasks", "task_accuracy", percent, legend="mean accuracy of the tasks"),)
_SPEED = (
    _Column(
        "prefill",
        "speed_over_fp.prefill",
        lambda value: number(value, 2),
        sacrifice=1,
        legend="tokens read per second over the original's",
    ),
    _Column(
        "decode",
        "speed_over_fp.decode",
        lambda value: number(value, 2),
        sacrifice=1,
        legend="tokens generated per second, likewise",
    ),
)
_ALWAYS = (
    _Column("size", "model_bytes", _bytes, sacrifice=2),
    _Column(
        "bits", "bits_per_weight", lambda value: number(value, 2), sacrifice=4, legend="of a weight, with its scales"
    ),
    _Column("time", "quantize_seconds", _time, legend="to quantize"),
)


def comparison_table(comparison: Mapping[str, Any], width: int) -> Table:
    """What `compare` returns: the floating-point model first, then a row for each recipe."""
    rows = _rows(comparison)
    columns = _fitting(rows, width)
    table = plain_table(width)
    table.add_column("recipe", no_wrap=True)
    for column in columns:
        table.add_column(column.heading, justify="right", no_wrap=True)
    for index, (name, results) in enumerate(rows.items()):
        first = index == 0
        table.add_row(name, *_cells(columns, results), style="bold" if first else None, end_section=first)
    return table


def legend(comparison: Mapping[str, Any], width: int) -> str:
    """What the headings of `comparison_table` mean, of those that it shows at this width."""
    columns = _fitting(_rows(comparison), width)
    lines: list[str] = []
    for entry in (f"{column.heading}: {column.legend}" for column in columns if column.legend):
        if lines and len(longer := f"{lines[-1]} · {entry}") <= width:
            lines[-1] = longer
        else:
            lines.append(entry)
    return "\n".join(lines)


def remarks(comparison: Mapping[str, Any]) -> list[str]:
    """What there is to say below the table: recipes that were left out, runs that were not measured anew."""
    lines = [f"{name} left out: {reason}" for name, reason in comparison["skipped"].items()]
    runs = _rows(comparison).values()
    cached = sum(bool(results.get("cached")) for results in runs)
    return [*lines, f"{cached} of {len(runs)} rows from the cache"] if cached else lines


def evaluation_table(results: Results) -> Table:
    """What `evaluate` returns, a line for each figure."""
    table = Table.grid(padding=(0, 3))
    for label, text in _evaluation_lines(results):
        table.add_row(Text(label, style="dim"), text)
    return table


def recipes_table(recipes: Sequence[Any], width: int) -> Table:
    """The catalogue: objects with name, summary, paper, weights and stream, as `recipe.Recipe`."""
    table = plain_table(width)
    table.add_column("recipe", no_wrap=True, style="bold")
    table.add_column("W/A", justify="right", no_wrap=True)
    table.add_column("what it does")
    if width >= NARROW:
        table.add_column("paper", style="dim", no_wrap=True)
    for recipe in recipes:
        inputs = recipe.stream.inputs.bits if recipe.stream.inputs else 16
        cells = [recipe.name, f"{recipe.weights.bits}/{inputs}", recipe.summary, recipe.paper or MISSING]
        table.add_row(*cells[: len(table.columns)])
    return table


def plain_table(width: int) -> Table:
    """Headings over a thin rule."""
    return Table(box=box.SIMPLE_HEAD, padding=(0, _gap(width) - 1, 0, 0), show_edge=False, pad_edge=False)


def _rows(comparison: Mapping[str, Any]) -> dict[str, Results]:
    """The results by the names of the rows, with the mean accuracy of their tasks."""
    rows = {"floating point": comparison["fp"], **comparison["recipes"]}
    return {name: {**results, "task_accuracy": _task_accuracy(results)} for name, results in rows.items()}


def _task_accuracy(results: Results) -> float | None:
    """Over the tasks that have one."""
    found = [scores["acc"] for scores in (results.get("tasks") or {}).values() if scores.get("acc") is not None]
    return sum(found) / len(found) if found else None


def _value(results: Results, key: str) -> Any:
    """The entry of a column's key."""
    name, _, part = key.partition(".")
    entry = results.get(name)
    return entry.get(part) if part and isinstance(entry, Mapping) else entry


def _filled(floating: Results) -> list[_Column]:
    """The columns that the results of the original can fill, and so those of the recipes."""
    language = _LANGUAGE if floating.get("perplexity") is not None else ()
    embeddings = _EMBEDDINGS if "cosine_mean" in floating else ()
    classes = _CLASSES if "accuracy" in floating else ()
    tasks = _TASKS if floating.get("task_accuracy") is not None else ()
    speed = tuple(column for column in _SPEED if _value(floating, column.key) is not None)
    return [*language, *embeddings, *classes, *tasks, *_ALWAYS, *speed]


def _fitting(rows: Mapping[str, Results], width: int) -> list[_Column]:
    """The columns that fit beside the names, the dearest ones last to go."""
    columns = _filled(next(iter(rows.values())))
    room = width - max(map(len, rows)) - 1
    for level in range(max(column.sacrifice for column in columns), 0, -1):
        if sum(_width(column, rows) + _gap(width) for column in columns) <= room:
            break
        columns = [column for column in columns if column.sacrifice < level]
    return columns


def _width(column: _Column, rows: Mapping[str, Results]) -> int:
    return max(len(column.heading), *(len(column.show(_value(results, column.key))) for results in rows.values()))


def _gap(width: int) -> int:
    """Narrow terminals get less air between columns."""
    return 2 if width < NARROW else 3


def _cells(columns: Sequence[_Column], results: Results) -> list[Text | str]:
    return [column.show(_value(results, column.key)) for column in columns]


def _evaluation_lines(results: Results) -> list[tuple[str, str]]:
    lines = []
    if results.get("perplexity") is not None:
        windows = f"{results['tokens']:,} tokens, windows of {results['length']}"
        lines.append(("perplexity", f"{number(results['perplexity'], 4)}   ({windows})"))
    if "cosine_mean" in results:
        lowest = number(results["cosine_min"], 4)
        lines.append(("cosine to FP", f"{number(results['cosine_mean'], 4)}   (lowest {lowest})"))
    if results.get("probe_accuracy") is not None:
        original = percent(results["probe_accuracy_fp"])
        lines.append(("linear probe", f"{percent(results['probe_accuracy'])}   (FP {original})"))
    if "accuracy" in results:
        original = f", FP {percent(results['accuracy_fp'])}" if "accuracy_fp" in results else ""
        lines.append(("accuracy", f"{percent(results['accuracy'])}   (of {results['items']:,}{original})"))
    if "agreement" in results:
        lines.append(("agreement", f"{percent(results['agreement'])}   (share of FP's answers)"))
    lines.append(("size", megabytes(results["model_bytes"])))
    lines.append(("bits per weight", number(results["bits_per_weight"], 2)))
    lines.append(("time", duration(results["seconds"])))
    return lines
