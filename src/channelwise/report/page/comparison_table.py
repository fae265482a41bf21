"""The comparison's table: which columns there are, and a row for each recipe."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from channelwise.report.format import MISSING, duration, megabytes, number
from channelwise.report.page.quality import MEASURES, Measure, Results, finished_recipes, widths


@dataclass(frozen=True)
class Column:
    """A heading, what it means, and how to find and show a figure in a model's results."""

    heading: str
    meaning: str
    of: Callable[[Results], float | None]
    show: Callable[[float], str]


@dataclass(frozen=True)
class Cell:
    """A figure as text, and what it is sorted by; None goes to the end."""

    text: str
    value: float | None


@dataclass(frozen=True)
class Row:
    """A recipe: its widths, the verdict of its quality, whether it is on the Pareto front, its figures."""

    name: str
    summary: str
    widths: str
    verdict: str
    on_front: bool
    cells: tuple[Cell, ...]


def result_columns(comparison: Mapping[str, Any]) -> list[Column]:
    """Those that any of the results can fill."""
    rows = [comparison["fp"], *finished_recipes(comparison).values()]
    return [column for column in _columns(comparison) if any(column.of(results) is not None for results in rows)]


def result_rows(comparison: Mapping[str, Any], columns: list[Column], on_front: set[str]) -> list[Row]:
    """The floating-point model first, then the recipes in their order. on_front: names."""
    measure = next((m for m in MEASURES if m.of(comparison["fp"]) is not None), None)
    floating = Row("floating point", "the original", "FP", "", False, _cells(columns, comparison["fp"]))
    return [
        floating,
        *(
            Row(
                name,
                str(results.get("summary", "")),
                widths(results),
                _verdict(measure, results, comparison["fp"]),
                name in on_front,
                _cells(columns, results),
            )
            for name, results in finished_recipes(comparison).items()
        ),
    ]


def _columns(comparison: Mapping[str, Any]) -> list[Column]:
    tasks: dict[str, None] = {}
    for results in (comparison["fp"], *comparison["recipes"].values()):
        tasks |= dict.fromkeys(results.get("tasks") or {})
    return [
        Column("perplexity", "on the test text", _entry("perplexity"), lambda value: number(value, 3)),
        Column("× FP", "perplexity over the original's", _entry("perplexity_ratio"), _ratio),
        *(Column(name, f"accuracy of the task {name}", _task(name), _points) for name in tasks),
        Column("accuracy", "share of right answers", _entry("accuracy"), _points),
        Column("agreement", "share of the original's answers that are kept", _entry("agreement"), _points),
        Column("cosine", "mean cosine to the original's embeddings", _entry("cosine_mean"), _fixed(4)),
        Column("probe", "accuracy of a linear probe on the embeddings", _entry("probe_accuracy"), _points),
        Column("bits", "of a quantized weight, with its scales", _entry("bits_per_weight"), _fixed(2)),
        Column("size", "bytes of the whole model", _entry("model_bytes"), lambda value: megabytes(int(value))),
        Column("time", "to quantize", _entry("quantize_seconds"), duration),
        Column("prefill", "speed of reading a prompt, over the original's", _speed("prefill"), _times),
        Column("decode", "speed of generating, over the original's", _speed("decode"), _times),
    ]


def _entry(key: str) -> Callable[[Results], float | None]:
    return lambda results: results.get(key)


def _task(name: str) -> Callable[[Results], float | None]:
    return lambda results: ((results.get("tasks") or {}).get(name) or {}).get("acc")


def _speed(key: str) -> Callable[[Results], float | None]:
    return lambda results: (results.get("speed_over_fp") or {}).get(key)


def _fixed(digits: int) -> Callable[[float], str]:
    return lambda value: number(value, digits)


def _ratio(value: float) -> str:
    return number(value, 4 if value < 10 else 1)


def _points(share: float) -> str:
    return f"{100 * share:.1f} %"


def _times(ratio: float) -> str:
    return f"{ratio:.2f} ×"


def _cells(columns: list[Column], results: Results) -> tuple[Cell, ...]:
    values = [column.of(results) for column in columns]
    return tuple(
        Cell(MISSING if value is None else column.show(value), value)
        for column, value in zip(columns, values, strict=True)
    )


def _verdict(measure: Measure | None, results: Results, floating: Results) -> str:
    loss = None if measure is None else measure.loss(results, floating)
    return "" if measure is None or loss is None else measure.verdict(loss)
