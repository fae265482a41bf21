"""The comparison's table with speed and tasks, at the widths people see it."""

from typing import Any

import pytest
from rich.console import Console

from channelwise.report.tables import comparison_table, legend, remarks

FLOATING: dict[str, Any] = {
    "perplexity": 28.1,
    "perplexity_ratio": 1.0,
    "model_bytes": 15_000_000,
    "bits_per_weight": 16.0,
    "speed_over_fp": {"prefill": 1.0, "decode": 1.0},
    "tasks": {"piqa": {"acc": 0.5, "documents": 4}, "boolq": {"acc": 0.7, "documents": 4}, "other": {"f1": 0.1}},
    "cached": True,
}
CODED = {
    **FLOATING,
    "quantize_seconds": 9.0,
    "speed_over_fp": {"prefill": 1.25, "decode": 1.75},
    "tasks": {"piqa": {"acc": 0.25, "documents": 4}, "boolq": {"acc": 0.6, "documents": 4}},
    "cached": False,
}
COMPARISON = {"fp": FLOATING, "recipes": {"outliertune-static-w8a8": CODED}, "skipped": {"rtn-w4g128": "too wide"}}


def rendered(comparison: dict, width: int) -> str:
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        console.print(comparison_table(comparison, width))
    return capture.get()


@pytest.mark.parametrize("width", [60, 80, 100])
def test_it_is_whole_at_every_width(width: int) -> None:
    page = rendered(COMPARISON, width)
    assert "…" not in page and len(page.splitlines()) == 5
    assert "42.5 %" in page and "60.0 %" in page
    assert max(map(len, legend(COMPARISON, width).splitlines())) <= width


def test_speed_is_shown_where_there_is_room() -> None:
    assert "1.25" in rendered(COMPARISON, 100) and "1.75" in rendered(COMPARISON, 100)
    assert "tokens read per second over the original's" in legend(COMPARISON, 100)
    without_tasks = {key: value for key, value in CODED.items() if key != "tasks"}
    narrower = rendered({"fp": {**FLOATING, "tasks": None}, "recipes": {"outliertune-static-w8a8": without_tasks}}, 80)
    assert "1.25" in narrower and "1.75" in narrower and "15.0 MB" not in narrower
    assert "1.25" not in rendered(COMPARISON, 60) and "prefill" not in legend(COMPARISON, 60)


def test_what_was_not_measured_has_no_column() -> None:
    silent = {**FLOATING, "speed_over_fp": None, "tasks": {"other": {"f1": 0.1}}}
    page = rendered({"fp": silent, "recipes": {"rtn-w8a8": silent}}, 100)
    assert "prefill" not in page and "decode" not in page and "tasks" not in page
    reading = {**FLOATING, "speed_over_fp": {"prefill": 1.0, "decode": None}}
    page = rendered({"fp": reading, "recipes": {"rtn-w8a8": reading}}, 100)
    assert "prefill" in page and "decode" not in page


def test_remarks_below_it() -> None:
    assert remarks(COMPARISON) == ["rtn-w4g128 left out: too wide", "1 of 2 rows from the cache"]
    fresh = {**COMPARISON, "fp": {**FLOATING, "cached": False}}
    assert remarks(fresh) == ["rtn-w4g128 left out: too wide"]
