"""The page of `compare --report`: recipes beside the floating-point model and each other."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from channelwise.report.page.comparison_layers import layer_data
from channelwise.report.page.comparison_table import result_columns, result_rows
from channelwise.report.page.comparison_words import best_by_width, scored, summary
from channelwise.report.page.document import render
from channelwise.report.page.files import write_page
from channelwise.report.page.places import model_title
from channelwise.report.page.quality import (
    SIZES,
    Measure,
    Size,
    finished_recipes,
    is_weight_only,
    measured,
    pareto_front,
    readable_limit,
    widths,
)

GROUPS = {"both": "weights and inputs", "weights": "weights alone"}
"""The two kinds of recipes, which have a Pareto front each: what weights alone gain in size, they pay in speed."""


def write_comparison_page(results: Mapping[str, Any], path: Path) -> None:
    """Writes what `compare` returns as one HTML file. Raises OSError where it cannot be written."""
    write_page(comparison_page(results), path)


def comparison_page(results: Mapping[str, Any]) -> str:
    """The page's text.

    results: fp, recipes and skipped as `compare` returns them; model, settings, and a recipe's layers and sites may be
    missing, and their sections with them.
    """
    measures = measured(results)
    speaking = measures[0] if measures else None
    fronts = _fronts(results, measures)
    recipes = [] if speaking is None else scored(results, speaking)
    named_front = {}
    if speaking is not None:
        named_front = {GROUPS[group]: names for group, names in fronts[speaking.key]["bits_per_weight"].items()}
    on_front = {name for names in named_front.values() for name in names}
    columns = result_columns(results)
    layers = layer_data(results)
    data = {"plot": _plot_data(results, measures, fronts), "layers": layers}
    return render(
        "comparison.html",
        data,
        title=f"{_model_name(results)}: recipes compared",
        model=results.get("model", {}),
        model_name=_model_name(results),
        sentences=summary(results, speaking, named_front),
        best=[] if speaking is None else best_by_width(recipes, speaking),
        measures=measures,
        sizes=_known_sizes(results),
        columns=columns,
        rows=result_rows(results, columns, on_front),
        errors={name: found["error"] for name, found in results["recipes"].items() if found.get("error")},
        skipped=results.get("skipped", {}),
        layered=list(layers["recipes"]),
        settings=results.get("settings", {}),
        command=_command(results, measures),
    )


def _fronts(results: Mapping[str, Any], measures: list[Measure]) -> dict[str, dict[str, dict[str, list[str]]]]:
    """By measure, size and kind of recipe: the names on the Pareto front, the smallest first."""
    return {
        measure.key: {
            size.key: {group: _front(results, measure, size, group) for group in GROUPS}
            for size in _known_sizes(results)
        }
        for measure in measures
    }


def _front(results: Mapping[str, Any], measure: Measure, size: Size, group: str) -> list[str]:
    """Recipes that fail badly are on no front, however small they are."""
    points = {}
    for recipe in scored(results, measure):
        if is_weight_only(recipe.results) != (group == "weights") or measure.verdict(recipe.loss) == "failed":
            continue
        if recipe.results.get(size.key) is not None:
            points[recipe.name] = (float(recipe.results[size.key]), recipe.loss)
    return pareto_front(points)


def _known_sizes(results: Mapping[str, Any]) -> list[Size]:
    finished = finished_recipes(results).values()
    return [size for size in SIZES if any(found.get(size.key) is not None for found in finished)]


def _plot_data(results: Mapping[str, Any], measures: list[Measure], fronts: Mapping[str, Any]) -> dict[str, Any]:
    """What the plot of size against quality shows."""
    finished = finished_recipes(results)
    return {
        "groups": GROUPS,
        "sizes": {size.key: size.label for size in _known_sizes(results)},
        "measures": {
            measure.key: {
                "label": measure.label,
                "kind": measure.kind,
                "fp": measure.of(results["fp"]),
                "limit": readable_limit([recipe.loss for recipe in scored(results, measure)]),
            }
            for measure in measures
        },
        "fp": {size.key: results["fp"].get(size.key) for size in SIZES},
        "fronts": fronts,
        "recipes": [
            {
                "name": name,
                "group": "weights" if is_weight_only(found) else "both",
                "widths": widths(found),
                "summary": found.get("summary", ""),
                "sizes": {size.key: found.get(size.key) for size in SIZES},
                "values": {measure.key: measure.of(found) for measure in measures},
            }
            for name, found in finished.items()
        ],
    }


def _model_name(results: Mapping[str, Any]) -> str:
    return model_title(str(results.get("model", {}).get("name") or "a model"))


def _command(results: Mapping[str, Any], measures: list[Measure]) -> str | None:
    """The command that makes this comparison again; None where the settings do not tell it all."""
    settings, model = results.get("settings", {}), results.get("model", {})
    told = {"perplexity_ratio", "tasks"}
    if not settings.get("data") or not model.get("name") or not {measure.key for measure in measures} <= told:
        return None
    tasks = settings.get("tasks")
    options = {
        "--recipes": ",".join(results["recipes"]),
        "--data": settings["data"],
        "--perplexity": settings.get("perplexity"),
        "--perplexity-length": settings.get("perplexity_length"),
        "--tasks": ",".join(tasks) if tasks else None,
        "--limit": settings.get("limit"),
        "--samples": settings.get("samples"),
        "--length": settings.get("length"),
        "--seed": settings.get("seed") or None,
        "--device": None if settings.get("device") in (None, "cpu") else settings["device"],
    }
    given = " ".join(f"{option} {shlex.quote(str(value))}" for option, value in options.items() if value is not None)
    return f"channelwise compare {shlex.quote(model['name'])} {given}"
