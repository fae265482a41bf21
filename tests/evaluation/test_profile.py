"""The profile of tiny models: what `inspect --report` shows."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from channelwise.errors import InputError, NumericalError
from channelwise.evaluation.outliers import find_outliers, range_figures
from channelwise.evaluation.profile import NamedPlan, SiteProfile, profile_model
from channelwise.evaluation.profile_data import profile_data, without_channels
from channelwise.evaluation.profile_schemes import PLAIN_SCHEMES
from channelwise.model.experts import unfuse_experts
from channelwise.numerics.quantizer import fake_quantize, parameters_of
from channelwise.recipe import load_recipe
from tests.model.tiny_models import tiny_batch, tiny_model


def plan(name: str, *settings: str) -> NamedPlan:
    return NamedPlan(name, load_recipe(name, settings).to_plan())


def profiled(model: nn.Module, recipe: NamedPlan | None = None) -> tuple[SiteProfile, ...]:
    return profile_model(model, [tiny_batch(model, seed) for seed in range(3)], recipe)


def recorded_inputs(model: nn.Module, name: str) -> torch.Tensor:
    """The inputs of one layer over the batches of `profiled`, [tokens, channels]."""
    seen: list[torch.Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, -2)))
    for seed in range(3):
        with torch.no_grad():
            model(**tiny_batch(model, seed))
    handle.remove()
    return torch.cat(seen)


@pytest.mark.parametrize("name", ["opt", "gpt2", "bert", "vit", "qwen3_moe", "falcon_new"])
def test_every_site_has_its_figures_and_every_layer_its_errors(name: str) -> None:
    model = tiny_model(name, torch.float32)
    unfuse_experts(model)
    before = copy.deepcopy(model.state_dict())
    sites = profiled(model, plan("outliertune-w8a8"))
    outliers = find_outliers(model, [tiny_batch(model, seed) for seed in range(3)])
    assert [site.outliers.name for site in sites] == [found.name for found in outliers]
    for site, found in zip(sites, outliers, strict=True):
        assert site.outliers.tokens == found.tokens
        # A block alone and the whole model may take attention's sums in another order: float32, some hundred terms.
        assert site.outliers.largest == pytest.approx(found.largest, rel=1e-4)
        assert [layer.name for layer in site.layers] == list(found.linears)
        assert len(site.minima) == len(site.maxima) == (found.channels if found.tokens else 0)
        for layer in site.layers:
            assert list(layer.errors) == [*PLAIN_SCHEMES, "outliertune-w8a8"]
            assert all((error is None) == (found.tokens == 0) for error in layer.errors.values())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_the_channels_are_those_of_the_inputs() -> None:
    model = tiny_model("opt", torch.float32)
    site = profiled(model)[2]
    x = recorded_inputs(model, site.outliers.name)
    assert list(site.minima) == pytest.approx(x.amin(dim=0).tolist(), rel=1e-4)
    assert list(site.maxima) == pytest.approx(x.amax(dim=0).tolist(), rel=1e-4)
    assert site.transformed is None


def test_an_error_is_that_of_the_rounded_weight_on_the_layers_own_inputs() -> None:
    model = tiny_model("opt", torch.float32)
    layer = profiled(model)[3].layers[0]
    x, scheme = recorded_inputs(model, layer.name).double(), PLAIN_SCHEMES["W4 g128"].weights
    weight = model.get_submodule(layer.name).weight
    parameters = parameters_of(weight, scheme.grid, scheme.granularity)
    rounded = fake_quantize(weight, parameters, scheme.grid, scheme.granularity)
    y = x @ weight.double().t()
    error = (x @ (rounded.double() - weight.double()).t()).square().sum() / (y - y.mean(dim=0)).square().sum()
    # Outputs are in float32 (6e-8) and differ by a few per cent at 4 bits: some 1e-5 of the difference.
    assert layer.errors["W4 g128"] == pytest.approx(float(error), rel=1e-3)


def test_outliers_cost_a_static_scale_most_and_a_transform_takes_that_away() -> None:
    model = tiny_model("opt", torch.float32)
    for block in model.model.decoder.layers:
        block.self_attn_layer_norm.weight.data[5] *= 100.0
        for name in ("q_proj", "k_proj", "v_proj"):
            getattr(block.self_attn, name).weight.data[:, 5] /= 100.0
    site = profiled(model, plan("outliertune-w8a8"))[0]
    assert site.outliers.ratio > 20
    assert site.transformed is not None and site.transformed.figures.ratio == pytest.approx(1.0, abs=1e-3)
    assert site.transformed.shift and site.transformed.scale
    assert max(site.transformed.maxima) == pytest.approx(127.0, rel=1e-4)
    for layer in site.layers:
        errors = layer.errors
        assert errors["outliertune-w8a8"] < errors["W8A8 per token"] < errors["W8A8 static"]


def test_pre_shifted_exponents_count_as_a_scale() -> None:
    model = tiny_model("opt", torch.float32)
    model.model.decoder.layers[0].self_attn_layer_norm.weight.data[5] *= 30.0
    site = profiled(model, plan("llm-fp4-w4a4"))[0]
    assert site.transformed is not None and site.transformed.scale and not site.transformed.shift
    assert site.transformed.figures.ratio < site.outliers.ratio / 2


def test_what_a_recipe_leaves_out_has_no_error_by_it() -> None:
    model = tiny_model("opt", torch.float32)
    chosen = plan("rtn-w8a8", "exclude=['*.fc1', '*.q_proj']")
    by_name = {layer.name.rpartition(".")[2]: layer for site in profiled(model, chosen) for layer in site.layers}
    assert by_name["fc1"].errors["rtn-w8a8"] is None and by_name["q_proj"].errors["rtn-w8a8"] is None
    assert by_name["fc2"].errors["rtn-w8a8"] == by_name["fc2"].errors["W8A8 static"]


def test_a_recipe_that_does_not_fit_is_refused_at_once() -> None:
    reports: list[Any] = []
    model = tiny_model("opt", torch.float32)
    with pytest.raises(InputError, match="groups of 128"):
        profile_model(model, [tiny_batch(model)], plan("gptq-w4g128"), lambda *told: reports.append(told))
    assert reports == []


def test_numbers_that_are_not_finite_name_the_site() -> None:
    model = tiny_model("opt", torch.float32)
    model.model.decoder.layers[1].fc1.bias.data[0] = torch.inf
    with pytest.raises(NumericalError, match=r"layers\.1\.fc2"):
        profiled(model)


def test_data_for_pages_is_rounded_and_json_leaves_the_channels_out() -> None:
    model = tiny_model("opt", torch.float32)
    sites = profiled(model, plan("rtn-w8a8"))
    data = profile_data("tiny", model, sites, recipe="rtn-w8a8", settings={"data": "x"})
    assert data["facts"]["blocks"] == 2 and data["facts"]["linear_layers"] == 12
    assert data["schemes"] == [*PLAIN_SCHEMES, "rtn-w8a8"]
    for site, source in zip(data["sites"], sites, strict=True):
        # Half a unit of the fourth digit.
        assert site["minima"] == pytest.approx(source.minima, rel=5e-4)
        assert all(value == float(f"{value:.4g}") for value in site["maxima"])
    lean = without_channels(data)["sites"][0]
    assert not {"minima", "maxima"} & ({*lean} | {*lean["after"]})
    assert lean["ratio"] == data["sites"][0]["ratio"]


def test_figures_of_ranges() -> None:
    figures = range_figures(torch.tensor([-1.0, 0.0, 4.0]), torch.tensor([1.0, 2.0, 8.0]))
    assert (figures.largest, figures.median, figures.ratio, figures.asymmetry) == (8.0, 2.0, 4.0, 3.0)
