"""Recipes: the catalogue, and what is refused."""

from typing import Any

import pytest
import yaml

from channelwise.errors import InputError
from channelwise.methods import NoTransform, OutlierSuppressionPlus, OutlierTune, SmoothQuant
from channelwise.recipe import load_recipe, recipe_names, recipe_text

METHOD_OF = {
    "rtn": NoTransform,
    "smoothquant": SmoothQuant,
    "os-plus": OutlierSuppressionPlus,
    "outliertune": OutlierTune,
}


def data(name: str = "os-plus-w6a6") -> dict[str, Any]:
    return yaml.safe_load(recipe_text(name))


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_what_its_name_says(name: str) -> None:
    recipe = load_recipe(name)
    plan = recipe.to_plan()
    bits = int(name.rsplit("-w", 1)[1].split("a")[0])
    assert recipe.name == name
    assert plan.weights.grid.bits == bits
    assert {plan.stream.inputs.grid.bits, plan.inner.inputs.grid.bits} == {bits}
    expected = next(method for prefix, method in METHOD_OF.items() if name.startswith(prefix))
    assert type(plan.stream.method) is expected
    everywhere = "-all-" in name or "-static-" in name
    assert type(plan.inner.method) is (expected if everywhere else NoTransform)


def test_the_catalogue_has_the_papers_granularities() -> None:
    kinds = {name: load_recipe(name) for name in recipe_names()}
    token = {name for name, r in kinds.items() if r.stream.inputs.granularity == "token"}
    assert token == {"rtn-w4a4", "smoothquant-token-w6a6", "os-plus-token-w6a6", "os-plus-w4a4"}
    for bits in (6, 8):
        assert kinds[f"outliertune-w{bits}a{bits}"].inner.inputs.granularity == "token"
        assert kinds[f"outliertune-static-w{bits}a{bits}"].inner.inputs.granularity == "channel"
        assert kinds[f"os-plus-w{bits}a{bits}"].inner.inputs.granularity == "tensor"


def changed(*path: str, value: Any) -> dict[str, Any]:
    recipe = data()
    place = recipe
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return recipe


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (changed("wieghts", value=1), "wieghts: unknown key; did you mean weights"),
        (changed("weights", "bits", value=1), "weights.bits: .*greater than or equal to 2"),
        (changed("weights", "bits", value=9), "weights.bits: .*less than or equal to 8"),
        (changed("weights", "bits", value="six"), "weights.bits: .*integer"),
        (changed("weights", "granularity", value="rows"), "weights.granularity: .*'output_channel'"),
        (changed("weights", "granularity", value="group"), "group_size goes with granularity: group"),
        (changed("weights", "group_size", value=64), "group_size goes with granularity: group"),
        (changed("stream", "inputs", "granularity", value="channel"), "inputs per channel go with method outliertune"),
        (changed("stream", "method", value={"name": "outliertune"}), "inputs per channel go with method outliertune"),
        (changed("stream", "method", value={"name": "os-plus"}), "unknown method 'os-plus'; did you mean os_plus"),
        (changed("stream", "method", value={"name": "os_plus", "shfit": "never"}), "shfit: unknown key"),
        (changed("calibration", "samples", value=0), "calibration.samples: .*greater than or equal to 1"),
    ],
)
def test_what_is_wrong_is_told_in_one_line_with_its_place(recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_recipe(recipe)
    assert "\n" not in str(caught.value)


def test_an_unknown_name_brings_the_nearest_ones() -> None:
    with pytest.raises(InputError, match="outliertune-w6a6"):
        load_recipe("outliertune-w6a7")


def test_a_recipe_file_is_read_and_a_broken_one_is_named(tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(recipe_text("rtn-w8a8"))
    assert load_recipe(path) == load_recipe("rtn-w8a8")
    path.write_text("weights: [")
    with pytest.raises(InputError, match=r"mine\.yaml: not YAML"):
        load_recipe(path)
    with pytest.raises(InputError, match="cannot read the recipe"):
        load_recipe(tmp_path / "missing.yaml")
    path.write_text("- a list")
    with pytest.raises(InputError, match="a recipe is a mapping"):
        load_recipe(path)


def test_a_group_scheme_runs_along_rows_or_columns() -> None:
    recipe = data()
    for direction, kind in {"oc": "row_group", "ic": "column_group"}.items():
        recipe["weights"] = {"bits": 4, "granularity": "group", "group_size": 32, "direction": direction}
        granularity = load_recipe(recipe).to_plan().weights.granularity
        assert (granularity.kind, granularity.group_size) == (kind, 32)


def test_a_clip_is_searched_for_static_ranges_only() -> None:
    assert load_recipe(changed("stream", "inputs", "clip", value="search")).to_plan().stream.search_clip
    recipe = data("os-plus-w4a4")
    recipe["inner"]["inputs"]["clip"] = "search"
    with pytest.raises(InputError, match="clip: search goes with static inputs"):
        load_recipe(recipe)
