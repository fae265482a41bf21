"""Recipes: the catalogue, and what is refused."""

from dataclasses import replace
from typing import Any

import pytest
import yaml

from channelwise.errors import InputError
from channelwise.methods import Awq, LlmFp4, NoTransform, OutlierSuppressionPlus, OutlierTune, SmoothQuant
from channelwise.numerics.granularity import COLUMN, ROW, Granularity
from channelwise.numerics.grids import FloatGrid, Grid, IntegerGrid, float_grids
from channelwise.recipe import load_recipe, recipe_names, recipe_text

METHOD_OF = {
    "rtn": NoTransform,
    "gptq": NoTransform,
    "awq": Awq,
    "smoothquant": SmoothQuant,
    "os-plus": OutlierSuppressionPlus,
    "outliertune": OutlierTune,
    "llm-fp4": LlmFp4,
    "fpq-search": LlmFp4,
    "minmax-fp4": NoTransform,
}
FLOATING = ("llm-fp4", "fpq-search", "minmax-fp4")


def data(name: str = "os-plus-w6a6") -> dict[str, Any]:
    return yaml.safe_load(recipe_text(name))


def widths(name: str) -> tuple[int, int]:
    """Of weights and inputs; 16, or none in the name, are inputs that stay as they are."""
    weights, _, inputs = name.rsplit("-w", 1)[1].partition("g")[0].partition("a")
    return int(weights), int(inputs or 16)


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.endswith("g128")])
def test_weight_only_recipes_have_the_groups_directions_and_rounding_of_their_names(name: str) -> None:
    plan = load_recipe(name).to_plan().weights
    assert plan.granularity == Granularity("row_group", 128)
    assert plan.alternative == (Granularity("column_group", 128) if "-ada-" in name else None)
    assert (plan.rounding is not None) == name.startswith("gptq")
    assert plan.search_clip == name.startswith("awq")
    assert all(isinstance(grid, IntegerGrid) and not grid.symmetric for grid in plan.grids)


def test_a_whole_row_or_column_can_be_one_group() -> None:
    plan = load_recipe("rtn-ada-w3g128", ["weights.group_size=whole"]).to_plan().weights
    assert (plan.granularity, plan.alternative) == (ROW, COLUMN)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_what_its_name_says(name: str) -> None:
    recipe = load_recipe(name)
    plan = recipe.to_plan()
    weight_bits, input_bits = widths(name)
    assert recipe.name == name
    assert {grid.bits for grid in plan.weights.grids} == {weight_bits}
    sites = [plan.stream, plan.inner, *([plan.head] if plan.head else [])]
    found = {None if site.inputs is None else grid.bits for site in sites for grid in grids_of(site.inputs)}
    assert found == {None if input_bits == 16 else input_bits}
    expected = next(method for prefix, method in METHOD_OF.items() if name.startswith(prefix))
    assert type(plan.stream.method) is expected
    everywhere = "-all-" in name or "-static-" in name or name.startswith((*FLOATING, "awq"))
    assert type(plan.inner.method) is (expected if everywhere else NoTransform)


def grids_of(inputs: Any) -> tuple[Any, ...]:
    return (None,) if inputs is None else inputs.grids


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith(FLOATING)])
def test_floating_point_recipes_quantize_head_and_embedding_at_the_width_of_the_weights(name: str) -> None:
    plan = load_recipe(name).to_plan()
    weight_bits, input_bits = widths(name)
    assert plan.embedding is not None and plan.head is not None
    assert plan.head == plan.stream == plan.inner
    searched = not name.startswith("minmax")
    weights: tuple[Grid, ...] = float_grids(weight_bits) if searched else (FloatGrid(2, weight_bits - 3),)
    assert plan.weights.grids == plan.embedding.grids == weights
    assert plan.weights.granularity.kind == "row"
    assert plan.embedding.search is searched
    assert plan.objective == ("auto" if searched else "output")
    assert plan.calibrate_on == "original"
    if input_bits == 16:
        assert plan.stream.inputs is None
        return
    assert plan.stream.inputs is not None and plan.stream.inputs.kind == "static"
    assert plan.stream.inputs.grids == (float_grids(input_bits) if searched else weights)


def test_only_the_floating_point_recipes_touch_head_and_embedding() -> None:
    others = [load_recipe(name).to_plan() for name in recipe_names() if not name.startswith(FLOATING)]
    assert others
    assert all(plan.head is None and plan.embedding is None for plan in others)
    assert all(isinstance(grid, IntegerGrid) for plan in others for grid in plan.weights.grids)


def test_llm_fp4_and_the_search_it_is_compared_with_differ_in_the_pre_shift_alone() -> None:
    ours, search = (load_recipe(name).to_plan() for name in ("llm-fp4-w4a4", "fpq-search-w4a4"))
    assert ours.stream.method == LlmFp4()
    assert search.stream.method == LlmFp4(pre_shift=False)
    same = {"stream": search.stream, "inner": search.inner, "head": search.head}
    assert replace(ours, **same) == search


def test_the_catalogue_has_the_papers_granularities() -> None:
    kinds = {name: load_recipe(name) for name in recipe_names()}
    token = {name for name, r in kinds.items() if r.stream.inputs and r.stream.inputs.granularity == "token"}
    assert token == {"rtn-w4a4", "smoothquant-token-w6a6", "os-plus-token-w6a6", "os-plus-w4a4"}
    for bits in (6, 8):
        assert kinds[f"outliertune-w{bits}a{bits}"].inner.inputs.granularity == "token"
        assert kinds[f"outliertune-static-w{bits}a{bits}"].inner.inputs.granularity == "channel"
        assert kinds[f"os-plus-w{bits}a{bits}"].inner.inputs.granularity == "tensor"


def changed(*path: str, value: Any, of: str = "os-plus-w6a6") -> dict[str, Any]:
    recipe = data(of)
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


def float_changed(*path: str, value: Any) -> dict[str, Any]:
    """LLM-FP4's recipe with one entry changed; its sites are one mapping in YAML, so that all of them are."""
    return changed(*path, value=value, of="llm-fp4-w4a4")


INTEGERS = {"bits": 4}
E2M1 = {"bits": 4, "format": "e2m1"}
SEARCHED = {"bits": 4, "format": "search"}


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (float_changed("weights", value={"bits": 1, "format": "search"}), "weights.bits: .*than or equal to 2"),
        (float_changed("weights", value={"bits": 9, "format": "search"}), "weights.bits: .*than or equal to 8"),
        (float_changed("embedding", "bits", value=1), "embedding.bits: .*than or equal to 2"),
        (float_changed("stream", "inputs", "bits", value=9), "stream.inputs.bits: .*than or equal to 8"),
        (
            float_changed("weights", "format", value="e4m3"),
            "weights: no format 'e4m3' of 4 bits; there are .*e1m2, e2m1, e3m0",
        ),
        (
            float_changed("embedding", "format", value="e2m1m0"),
            "embedding: no format 'e2m1m0' of 4 bits; .*e1m2, e2m1, e3m0",
        ),
        (
            changed("weights", value={"bits": 8, "format": "e2m1"}),
            "no format 'e2m1' of 8 bits; .*e1m6, e2m5, e3m4, e4m3, e5m2, e6m1, e7m0",
        ),
        (float_changed("weights", "format", value="E2M1"), "no format 'E2M1' of 4 bits"),
        (float_changed("weights", "format", value=4), "weights.format: .*string"),
        (float_changed("weights", "symmetric", value=False), "symmetric: false goes with format: integer"),
        (changed("weights", value=SEARCHED), "weights: format: search goes with method llm_fp4 at every site"),
        (
            float_changed("stream", value={"method": {"name": "none"}, "inputs": E2M1}),
            "weights: format: search goes with method llm_fp4 at every site",
        ),
        (
            float_changed("head", value={"method": {"name": "none"}, "inputs": E2M1}),
            "weights: format: search goes with method llm_fp4 at every site",
        ),
        (
            changed("stream", "inputs", value={"bits": 6, "format": "search"}),
            "stream: format: search goes with method llm_fp4",
        ),
        (float_changed("weights", value=INTEGERS), "llm_fp4 takes floating-point weights"),
        (
            float_changed("weights", value={**SEARCHED, "granularity": "group", "group_size": 32}),
            "llm_fp4 takes floating-point weights with granularity: output_channel",
        ),
        (
            float_changed("weights", value={**SEARCHED, "granularity": "tensor"}),
            "llm_fp4 takes floating-point weights with granularity: output_channel",
        ),
        (float_changed("stream", "inputs", value=INTEGERS), "stream: llm_fp4 takes floating-point inputs"),
        (
            float_changed("inner", "inputs", "granularity", value="token"),
            "inner: llm_fp4 takes static inputs per tensor",
        ),
        (float_changed("inner", "inputs", "clip", value="search"), "llm_fp4 .* searches their range by itself"),
        (float_changed("inner", "inputs", "granularity", value="channel"), "inputs per channel go with method"),
        (float_changed("embedding", "clip", value="none"), "embedding: format: search goes with clip: search"),
        (
            float_changed("embedding", value={"bits": 4, "clip": "search"}),
            "embedding: clip: search goes with floating-point formats",
        ),
        (
            float_changed("embedding", value={"bits": 4, "symmetric": False}),
            "embedding: the embedding takes no zero points",
        ),
        (float_changed("embedding", "granularity", value="row"), "embedding.granularity: unknown key"),
        (float_changed("embeding", value=None), "embeding: unknown key; did you mean embedding"),
        (float_changed("stream", "method", "preshift", value=True), "preshift: unknown key"),
        (float_changed("stream", "method", "rounds", value=0), "rounds: .*greater than or equal to 1"),
        (float_changed("stream", "method", "search", value="fast"), "search: .*'coarse_to_fine' or 'full'"),
        (float_changed("objective", value="hessian"), "objective: .*'auto', 'output' or 'fisher'"),
        (float_changed("calibrate_on", value="both"), "calibrate_on: .*'quantized' or 'original'"),
        (float_changed("search_tokens", value=0), "search_tokens: .*greater than or equal to 1"),
        (float_changed("head", value={"method": {"name": "llm_fp4"}}), "head.inputs: .*required"),
    ],
)
def test_formats_that_do_not_fit_are_told_in_one_line_with_their_place(recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_recipe(recipe)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_width_has_its_formats(bits: int) -> None:
    """One exponent bit is the least, and the sign is a bit of its own."""
    for exponent_bits in range(1, bits):
        grid = FloatGrid(exponent_bits, bits - 1 - exponent_bits)
        format = f"e{grid.exponent_bits}m{grid.mantissa_bits}"
        recipe = changed("weights", value={"bits": bits, "format": format})
        assert load_recipe(recipe).to_plan().weights.grids == (grid,)
    recipe = float_changed("weights", value={"bits": bits, "format": "search"})
    assert len(load_recipe(recipe).to_plan().weights.grids) == bits - 1


def test_null_leaves_head_and_embedding_in_floating_point() -> None:
    recipe = data("llm-fp4-w4a4") | {"head": None, "embedding": None}
    plan = load_recipe(recipe).to_plan()
    assert plan.head is None and plan.embedding is None
    assert plan == replace(load_recipe("llm-fp4-w4a4").to_plan(), head=None, embedding=None)


def test_a_method_may_search_among_one_format_and_the_embedding_may_be_of_integers() -> None:
    recipe = data("llm-fp4-w4a4") | {"weights": E2M1, "embedding": {"bits": 8}}
    plan = load_recipe(recipe).to_plan()
    assert plan.weights.grids == (FloatGrid(2, 1),)
    assert plan.embedding is not None and plan.embedding.grids == (IntegerGrid(8),)
    assert not plan.embedding.search


def test_a_whole_recipe_may_be_read_again_from_what_it_writes() -> None:
    for name in recipe_names():
        recipe = load_recipe(name)
        assert load_recipe(recipe.model_dump(mode="json")) == recipe


def test_settings_change_single_entries() -> None:
    plan = load_recipe("llm-fp4-w4a4", ["head=null", "embedding=null", "stream.method.rounds=5"]).to_plan()
    assert (plan.head, plan.embedding) == (None, None)
    assert (plan.stream.method, plan.inner.method) == (LlmFp4(rounds=5), LlmFp4())
    assert load_recipe(load_recipe("llm-fp4-w4a4"), ["weights.format=e2m1"]).weights.format == "e2m1"
    assert load_recipe("llm-fp4-w4a4").head is not None


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("head", "--set head: give KEY=VALUE"),
        ("=3", "--set =3: give KEY=VALUE"),
        ("weights.bits.more=3", "weights.bits.more is no entry of a mapping"),
        ("weights=[", "--set weights=\\[: not YAML"),
        ("wieghts=3", "wieghts: unknown key; did you mean weights"),
        ("weights.format=e4m3", "no format 'e4m3' of 4 bits"),
        ("stream.method.round=3", "round: unknown key"),
    ],
)
def test_settings_that_fit_nowhere_are_told_in_one_line(setting: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_recipe("llm-fp4-w4a4", [setting])
    assert "\n" not in str(caught.value)
