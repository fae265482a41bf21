"""What people see, at the widths they see it."""

from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from channelwise.recipe import load_recipe, recipe_names
from channelwise.report.format import duration, megabytes, number
from channelwise.report.inspection import advice, sites_table
from channelwise.report.tables import comparison_table, evaluation_table, legend, recipes_table

FLOATING = {
    "perplexity": 28.1,
    "tokens": 35731,
    "length": 512,
    "seconds": 12.0,
    "model_bytes": 15_000_000,
    "bits_per_weight": 16.0,
    "perplexity_ratio": 1.0,
}
CODED = {**FLOATING, "perplexity": 6182.0, "perplexity_ratio": 220.0, "bits_per_weight": 4.1, "quantize_seconds": 200.4}
EMBEDDED = {"cosine_mean": 0.9988, "cosine_min": 0.98, "probe_accuracy": 0.814, "probe_accuracy_fp": 0.82}
CLASSIFIED = {"items": 872, "accuracy": 0.9128, "accuracy_fp": 0.9151, "agreement": 0.9885}
COMPARISON = {"fp": FLOATING, "recipes": {"outliertune-static-w8a8": CODED, "rtn-w4a4": CODED}}
BOTH = {"fp": {**FLOATING, **EMBEDDED}, "recipes": {"outliertune-static-w8a8": {**CODED, **EMBEDDED}}}
SILENT = {"perplexity": None, "perplexity_ratio": None}
CLASSIFIERS = {
    "fp": {**FLOATING, **SILENT, **CLASSIFIED, "agreement": 1.0},
    "recipes": {"outliertune-static-w8a8": {**CODED, **SILENT, **CLASSIFIED}},
}


def site(**changes: Any) -> SimpleNamespace:
    prefix = "model.layers.0"
    known = {
        "block": 0,
        "name": f"{prefix}.self_attn.q_proj",
        "linears": tuple(f"{prefix}.self_attn.{letter}_proj" for letter in "qkv"),
        "kind": "stream",
        "channels": 4096,
        "tokens": 100,
        "largest": 56.25,
        "ratio": 21.8,
        "asymmetry": 1.9,
        "folds_into": f"{prefix}.self_attn_layer_norm",
        "folds_shift": True,
        "reason": "",
    }
    return SimpleNamespace(**{**known, **changes})


def rendered(page: Any, width: int) -> str:
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        console.print(page)
    return capture.get()


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("comparison", [COMPARISON, BOTH])
def test_a_comparison_is_whole_at_every_width(width: int, comparison: dict) -> None:
    page = rendered(comparison_table(comparison, width), width)
    assert "…" not in page
    assert len(page.splitlines()) == 4 + len(comparison["recipes"])
    assert "outliertune-static-w8a8" in page and "220.0" in page and "200 s" in page


def test_a_wide_comparison_shows_bits_too() -> None:
    assert "4.10" in rendered(comparison_table(COMPARISON, 100), 100)
    narrow = rendered(comparison_table(BOTH, 60), 60)
    assert "4.10" not in narrow and "0.9988" in narrow


@pytest.mark.parametrize("width", [60, 80, 100])
def test_a_comparison_of_classifiers(width: int) -> None:
    page = rendered(comparison_table(CLASSIFIERS, width), width)
    assert "…" not in page and "× FP" not in page
    assert "91.3 %" in page and "98.9 %" in page and "100.0 %" in page


def test_the_legend_tells_of_what_is_shown() -> None:
    assert legend(COMPARISON, 100).split(" · ") == [
        "× FP: perplexity over the original's",
        "bits: of a weight, with its scales",
        "time: to quantize",
    ]
    assert "bits" not in legend(BOTH, 60)
    assert max(map(len, legend(COMPARISON, 60).splitlines())) <= 60
    assert legend(CLASSIFIERS, 60).startswith("agreement: ") and "× FP" not in legend(CLASSIFIERS, 60)


def test_an_evaluation_of_a_classifier() -> None:
    page = rendered(evaluation_table({**FLOATING, **SILENT, **CLASSIFIED}), 60)
    assert "91.3 %" in page and "of 872, FP 91.5 %" in page and "98.9 %" in page
    alone = {key: CLASSIFIED[key] for key in ("items", "accuracy")}
    page = rendered(evaluation_table({**FLOATING, **SILENT, **alone}), 60)
    assert "(of 872)" in page and "agreement" not in page


def test_an_evaluation_shows_what_was_measured() -> None:
    page = rendered(evaluation_table({**FLOATING, **EMBEDDED}), 60)
    assert "28.1000" in page and "35,731 tokens" in page and "81.4 %" in page and "0.9988" in page
    assert "perplexity" not in rendered(evaluation_table({**FLOATING, **EMBEDDED, "perplexity": None}), 60)


@pytest.mark.parametrize("width", [60, 100])
def test_the_catalogue(width: int) -> None:
    page = rendered(recipes_table([load_recipe(name) for name in recipe_names()], width), width)
    assert "…" not in page
    assert all(name in page for name in recipe_names())


@pytest.mark.parametrize("width", [60, 80, 100])
def test_sites_at_every_width(width: int) -> None:
    page = rendered(sites_table([site(), site(kind="inner", folds_into=None, tokens=0)], width), width)
    assert "…" not in page
    assert "q,k,v_proj" in page and "56.25" in page and "21.8" in page


def test_layers_in_different_modules_keep_what_tells_them_apart() -> None:
    linears = ("h.0.attention.query_key_value", "h.0.mlp.up")
    page = rendered(sites_table([site(linears=linears)], 140), 140)
    assert "attention.query_key_value mlp.up" in page


@pytest.mark.parametrize(
    ("sites", "said"),
    [
        ([site(ratio=2.0)], "rtn-w8a8"),
        ([site()], "outliertune-w8a8"),
        ([site(), site(kind="inner", ratio=90.0)], "outliertune-static-w8a8"),
        ([site(tokens=0)], "no channel stands out"),
    ],
)
def test_advice_fits_the_figures(sites: list, said: str) -> None:
    assert said in rendered(advice(sites), 200)


def test_advice_speaks_of_a_shift_only_where_channels_are_offset() -> None:
    assert "shift" in rendered(advice([site()]), 200)
    assert "shift" not in rendered(advice([site(asymmetry=0.3)]), 200)


def test_numbers_as_people_read_them() -> None:
    assert [megabytes(n) for n in (12, 1500, 14_963_000, 3_100_000_000)] == ["12 B", "1.5 kB", "15.0 MB", "3.10 GB"]
    assert [duration(s) for s in (0.84, 9.96, 200.4, 725.2)] == ["0.8 s", "10 s", "200 s", "12 min 5 s"]
    assert [number(x, 3) for x in (1.23456, 1234.56, 3.2e7, None)] == ["1.235", "1,234.6", "3.2e+07", "–"]
