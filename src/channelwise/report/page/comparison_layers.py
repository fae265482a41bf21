"""What the comparison's page shows of single layers: errors, and what was chosen."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from channelwise.report.page.places import block_label, place_of, short_places
from channelwise.report.page.quality import finished_recipes

CHOICES = {
    "weight_format": "weight format",
    "input_format": "input format",
    "direction": "group direction",
    "threshold": "threshold t",
    "threshold_over_largest": "t over the largest",
    "exponents largest": "largest exponent",
    "exponents mean": "mean exponent",
    "loss_own": "own loss",
    "loss_oc": "loss along rows",
    "loss_ic": "loss along columns",
    "loss_unscaled": "loss without scale",
}
"""Choices under the names that the table shows; others keep theirs."""


def layer_data(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """{"layers": [{name, block, place}], "recipes": {name: {"errors": […], "choices": […], "rows": […]}}}.

    layers: of all recipes, in the model's order. errors: relative errors in that order, null where there is none.
    choices: the headings of what was chosen. rows: [layer's index, bits, weights, inputs, {heading: value}].
    """
    recipes = {name: found["layers"] for name, found in finished_recipes(comparison).items() if found.get("layers")}
    order = _order(recipes)
    positions = {layer["name"]: index for index, layer in enumerate(order)}
    return {
        "layers": order,
        "recipes": {name: _recipe(layers, positions) for name, layers in recipes.items()},
    }


def _order(recipes: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Every layer once, blocks in order, what is behind them last."""
    found = {layer["name"]: layer for layers in recipes.values() for layer in layers}
    places = {name: place_of(name, layer.get("block")) for name, layer in found.items()}
    short = short_places(places.values())
    ordered = sorted(found.values(), key=lambda layer: _behind_blocks(layer.get("block")))
    return [
        {"name": layer["name"], "block": block_label(layer.get("block")), "place": short[places[layer["name"]]]}
        for layer in ordered
    ]


def _behind_blocks(block: int | None) -> tuple[int, int]:
    return (1, 0) if block is None else (0, block)


def _recipe(layers: Sequence[Mapping[str, Any]], positions: Mapping[str, int]) -> dict[str, Any]:
    errors: list[float | None] = [None] * len(positions)
    rows: list[list[Any]] = []
    headings: dict[str, None] = {}
    for layer in sorted(layers, key=lambda layer: positions[layer["name"]]):
        position = positions[layer["name"]]
        errors[position] = layer.get("relative_error")
        chosen = dict(_choices(layer.get("choices") or {}))
        headings |= dict.fromkeys(chosen)
        rows.append([position, layer.get("bits_per_weight"), layer.get("weights"), layer.get("inputs"), chosen])
    return {"errors": errors, "choices": list(headings), "rows": rows}


def _choices(choices: Mapping[str, Any], group: str = "") -> Iterator[tuple[str, float | str]]:
    """(heading, value) of every choice; those of a group, such as the exponents', one by one."""
    for key, value in choices.items():
        if isinstance(value, Mapping):
            yield from _choices(value, f"{key} ")
        elif value is not None:
            heading = CHOICES.get(group + key, (group + key).replace("_", " "))
            # Numbers stay numbers, so that the table sorts them.
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            yield heading, float(value) if is_number else str(value)
