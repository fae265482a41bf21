"""The relative error of quantized layers, against its definition in float64."""

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from channelwise.engine.hooks import observed_inputs
from channelwise.engine.plan import InputPlan, Plan, SitePlan, WeightPlan
from channelwise.engine.walk import quantize_model
from channelwise.evaluation.layer_errors import few_samples, layer_errors, relative_errors
from channelwise.methods.none import NoTransform
from channelwise.model.experts import unfuse_experts
from channelwise.model.linears import bias_vector, replace_module, weight_matrix
from channelwise.numerics.granularity import ROW
from channelwise.numerics.grids import IntegerGrid
from channelwise.runtime.linear import QuantizedLinear
from tests.model.tiny_models import tiny_batch, tiny_model

# Llama; Conv1D; experts; an encoder; images.
ARCHITECTURES = ("llama", "gpt2", "mixtral", "bert", "vit")


def quantized(model: nn.Module, batches: list, weights: int, inputs: int | None) -> nn.Module:
    """A copy, rounded to nearest."""
    plan = None if inputs is None else InputPlan((IntegerGrid(inputs),), "static")
    site = SitePlan(NoTransform(), plan)
    copied = copy.deepcopy(model)
    quantize_model(copied, batches, Plan(WeightPlan((IntegerGrid(weights),), ROW), site, site))
    return copied


def prepared(name: str) -> tuple[nn.Module, list]:
    model = tiny_model(name, torch.float32)
    unfuse_experts(model)
    return model, [tiny_batch(model, seed) for seed in range(3)]


def by_definition(model: nn.Module, coded: nn.Module, batches: list) -> dict[str, float]:
    """‖Ŷ − Y‖² / ‖Y − mean‖² of every layer, from all its inputs at once."""
    layers = {name: module for name, module in coded.named_modules() if isinstance(module, QuantizedLinear)}
    inputs: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
    with torch.no_grad(), observed_inputs(model, list(layers), lambda name, x: inputs[name].append(x.flatten(0, -2))):
        for batch in batches:
            model(**batch)
    found = {}
    for name, layer in layers.items():
        linear, x = model.get_submodule(name), torch.cat(inputs[name])
        bias = bias_vector(linear)
        y = x.double() @ weight_matrix(linear).double().t() + (0.0 if bias is None else bias.double())
        error = layer.fake_forward(x) - y
        found[name] = float(error.square().sum() / (y - y.mean(dim=0)).square().sum())
    return found


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_is_its_definition(name: str) -> None:
    model, batches = prepared(name)
    coded = quantized(model, batches, weights=4, inputs=4)
    found = layer_errors(model, coded, batches)
    expected = by_definition(model, coded, batches)
    assert list(found) == list(expected) and len(found) >= 8
    # Outputs are float32 sums of at most 64 products, wrong by up to 64 · 2^−24 of them; the error, at 4 bits never
    # below a hundredth of an output, by a hundred times as much, its square by twice that.
    assert found == pytest.approx(expected, rel=2 * 100 * 64 * 2.0**-24)


def test_fewer_bits_lose_more_in_every_layer() -> None:
    model, batches = prepared("llama")
    losses = {bits: layer_errors(model, quantized(model, batches, bits, None), batches) for bits in (8, 4, 2)}
    for name in losses[8]:
        eight, four, two = (losses[bits][name] for bits in (8, 4, 2))
        assert eight is not None and four is not None and two is not None
        assert 0.0 < eight < four < two


def test_an_offset_of_the_outputs_does_not_make_the_error_small() -> None:
    model, batches = prepared("gpt2")
    name = "transformer.h.0.mlp.c_fc"
    coded = quantized(model, batches, 4, None)
    before = layer_errors(model, coded, batches)[name]
    model.get_submodule(name).bias.data += 100.0
    coded.get_submodule(name).bias.data += 100.0
    # 100 + y keeps 2^−17 of y; the error is never below a hundredth of y.
    assert layer_errors(model, coded, batches)[name] == pytest.approx(before, rel=2 * 100 * 2.0**-17)


def test_the_number_of_tokens_does_not_matter() -> None:
    model, batches = prepared("llama")
    coded = quantized(model, batches, 4, None)
    # Twice the same tokens: twice the errors and twice the spread, but for the order of the float64 additions.
    assert layer_errors(model, coded, batches * 2) == pytest.approx(layer_errors(model, coded, batches), rel=1e-9)


def test_what_has_no_error() -> None:
    model, batches = prepared("mixtral")
    coded = quantized(model, batches, 4, None)
    few = [{"input_ids": batches[0]["input_ids"][:1, :1]}]
    found = layer_errors(model, coded, few)
    experts = {name: error for name, error in found.items() if "experts" in name}
    # One token reaches two of four experts; and of one token no output differs from its mean.
    assert len(experts) == 2 * 4 * 3 and set(found.values()) == {None}
    two = layer_errors(model, coded, [{"input_ids": batches[0]["input_ids"][:1, :2]}])
    assert two["model.layers.0.self_attn.q_proj"] is not None
    replace_module(model, "model.layers.0.self_attn.q_proj", _Other(model.model.layers[0].self_attn.q_proj))
    assert layer_errors(model, coded, batches)["model.layers.0.self_attn.q_proj"] is None


def test_several_forms_at_once() -> None:
    model, batches = prepared("llama")
    forms = {}
    for bits in (8, 4):
        modules = quantized(model, batches, bits, None).named_modules()
        forms[f"W{bits}"] = {name: module for name, module in modules if isinstance(module, QuantizedLinear)}
    found = relative_errors(model, [lambda: model(**batches[0])], forms)
    assert all(0.0 < errors["W8"] < errors["W4"] for errors in found.values())


def test_few_samples_are_the_longest_and_not_too_many() -> None:
    batches = [{"input_ids": torch.full((5, length), length)} for length in (10, 500, 600)]
    chosen = few_samples(batches)
    assert [tuple(batch["input_ids"].shape) for batch in chosen] == [(1, 600)] * 3
    assert len(few_samples([{"input_ids": torch.zeros(20, 4)}])) == 8
    assert len(few_samples([{"input_ids": torch.zeros(1, 5000)}])) == 1
    images = few_samples([{"pixel_values": torch.zeros(20, 3, 4, 4)}])
    assert [tuple(batch["pixel_values"].shape) for batch in images] == [(1, 3, 4, 4)] * 8


def test_the_models_are_left_as_they_were() -> None:
    model, batches = prepared("llama")
    coded = quantized(model, batches, 4, 8)
    assert isinstance(model, transformers.PreTrainedModel)
    before: Any = {name: tensor.clone() for name, tensor in coded.state_dict().items()}
    layer_errors(model, coded, batches)
    assert all(torch.equal(tensor, before[name]) for name, tensor in coded.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


class _Other(nn.Module):
    """A layer that is no linear one to us."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.hidden = [inner]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.hidden[0](x)
