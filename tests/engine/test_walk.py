"""The walk over a small Llama."""

import copy
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from channelwise.engine.plan import InputPlan, Plan, SitePlan, WeightPlan
from channelwise.engine.quantize import plain_input, plain_layer, quantize_linear
from channelwise.engine.walk import quantize_model
from channelwise.errors import InputError, NumericalError
from channelwise.methods import NoTransform, OutlierSuppressionPlus, OutlierTune
from channelwise.methods.site import ChannelStatistics
from channelwise.numerics.granularity import ROW, Granularity
from channelwise.numerics.grids import IntegerGrid
from channelwise.numerics.transform import ChannelTransform
from channelwise.runtime.linear import QuantizedLinear
from channelwise.runtime.scheme import InputScheme, WeightScheme

IDS = torch.randint(64, (8, 24), generator=torch.Generator().manual_seed(0))
BATCHES = [{"input_ids": IDS[:4]}, {"input_ids": IDS[4:]}]


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    for layer in model.model.layers:
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.weight.data[:2] *= 30
    return model


def plan(bits: int = 8, method=OutlierTune(), kind: str = "static", **others) -> Plan:  # noqa: B008
    inputs = InputPlan((IntegerGrid(bits),), kind)
    site = SitePlan(method, inputs)
    inner = SitePlan(NoTransform(), InputPlan((IntegerGrid(bits),), "token"))
    return Plan(WeightPlan((IntegerGrid(bits),), ROW), site, inner, **others)


@torch.no_grad()
def error(model: torch.nn.Module) -> float:
    exact = tiny_llama()(IDS).logits
    return float((model(IDS).logits - exact).norm() / exact.norm())


def test_every_linear_layer_of_the_blocks_becomes_integer() -> None:
    model = tiny_llama()
    record = quantize_model(model, BATCHES, plan())
    kinds = {type(m) for layer in model.model.layers for n, m in layer.named_modules() if n.endswith("_proj")}
    assert kinds == {QuantizedLinear}
    assert [site.kind for site in record.sites] == ["stream", "inner"] * 4
    assert record.sites[0].tokens == IDS.numel()


def test_the_error_falls_with_the_step() -> None:
    errors = []
    for bits in (4, 6, 8):
        model = tiny_llama()
        quantize_model(model, BATCHES, plan(bits))
        errors.append(error(model))
    assert errors[0] > errors[1] > errors[2] > 0
    # Each bit halves the step, so four bits are worth a factor of 16; half of that leaves room for the tails.
    assert errors[2] < errors[0] / 8


def test_a_transform_beats_plain_rounding_under_outlier_channels() -> None:
    errors = {}
    for name, method in {"rtn": NoTransform(), "tuned": OutlierTune(), "os": OutlierSuppressionPlus()}.items():
        model = tiny_llama()
        quantize_model(model, BATCHES, plan(6, method))
        errors[name] = error(model)
    assert errors["tuned"] < 0.7 * errors["rtn"]
    assert errors["os"] < 0.7 * errors["rtn"]


def test_the_same_seed_gives_the_same_codes() -> None:
    states = []
    for _ in range(2):
        model = tiny_llama()
        quantize_model(model, BATCHES, plan(4, OutlierSuppressionPlus(), search_tokens=50), seed=7)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_block_sees_quantized_predecessors() -> None:
    """The statistics of block 1 change with the width of block 0, and only with that when levels are not sequential."""
    largest = []
    for bits in (2, 8):
        model = tiny_llama()
        largest.append([site.largest for site in quantize_model(model, BATCHES, plan(bits)).sites])
    assert largest[0][0] == largest[1][0]
    assert largest[0][4] != largest[1][4]
    together = quantize_model(tiny_llama(), BATCHES, plan(2, sequential=False)).sites
    in_order = quantize_model(tiny_llama(), BATCHES, plan(2, sequential=True)).sites
    exact = quantize_model(tiny_llama(), BATCHES, plan(8, sequential=False)).sites
    assert together[3].largest == exact[3].largest
    assert in_order[3].largest != exact[3].largest


@pytest.mark.parametrize("others", [{}, {"sequential": False}, {"calibrate_on": "original"}])
def test_a_block_may_be_excluded_whole(others: dict[str, Any]) -> None:
    model = tiny_llama()
    quantize_model(model, BATCHES, plan(exclude=("model.layers.0.*",), **others))
    kinds = {name: type(model.get_submodule(f"model.layers.{name}.mlp.down_proj")) for name in ("0", "1")}
    assert kinds == {"0": torch.nn.Linear, "1": QuantizedLinear}


def test_excluded_layers_stay_floating_point() -> None:
    model = tiny_llama()
    quantize_model(model, BATCHES, plan(exclude=("*.mlp.down_proj", "model.layers.0.self_attn.k_proj")))
    layer = model.model.layers[0]
    assert type(layer.mlp.down_proj) is torch.nn.Linear
    assert type(layer.self_attn.k_proj) is torch.nn.Linear
    assert type(layer.self_attn.q_proj) is QuantizedLinear
    model = tiny_llama()
    quantize_model(model, BATCHES, plan(exclude=("*.q_proj",)))
    assert type(model.model.layers[0].self_attn.q_proj) is torch.nn.Linear
    assert type(model.model.layers[0].self_attn.v_proj) is QuantizedLinear
    with pytest.raises(InputError, match="leaves no linear layer"):
        quantize_model(tiny_llama(), BATCHES, plan(exclude=("*",)))


def test_weights_that_are_not_finite_stop_the_walk_at_their_layer() -> None:
    model = tiny_llama()
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = torch.nan
    with pytest.raises(NumericalError, match=r"model\.layers\.1\.mlp"):
        quantize_model(model, BATCHES, plan())


def test_inputs_that_are_not_finite_stop_the_walk_at_their_site() -> None:
    model = tiny_llama()
    model.model.layers[1].input_layernorm.weight.data[3] = torch.inf
    with pytest.raises(NumericalError, match=r"model\.layers\.1\.self_attn\.q_proj: its input"):
        quantize_model(model, BATCHES, plan())


def test_groups_wider_than_a_layer_are_refused_before_the_walk() -> None:
    wide = Plan(
        WeightPlan((IntegerGrid(4),), Granularity("row_group", 64)),
        SitePlan(NoTransform(), None),
        SitePlan(NoTransform(), None),
    )
    model = tiny_llama()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=r"model\.layers\.0\.self_attn\.q_proj: groups of 64"):
        quantize_model(model, BATCHES, wide)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_progress_names_every_block() -> None:
    told: list[tuple[str, int, int]] = []
    quantize_model(tiny_llama(), BATCHES, plan(), progress=lambda *event: told.append(event))
    assert [(label, done) for label, done, _ in told][1:] == [("block 1 of 2", 0), ("block 2 of 2", 1), ("done", 2)]


def test_a_clip_shortens_the_step_and_saturates_what_is_beyond() -> None:
    layer = torch.nn.Linear(4, 3)
    statistics = ChannelStatistics(torch.full((4,), -2.0), torch.full((4,), 2.0), torch.zeros(4), 1)
    weights, inputs = WeightScheme(IntegerGrid(8), ROW), InputScheme(IntegerGrid(8), "static")
    quantizer = plain_input(ChannelTransform(), statistics, inputs, clip=0.5)
    chosen = plain_layer(layer, ChannelTransform(), weights, quantizer)
    quantized = quantize_linear(layer, ChannelTransform(), chosen)
    assert float(quantized.input_step) == pytest.approx(1.0 / 127)
    assert torch.equal(quantized(torch.full((1, 4), 2.0)), quantized(torch.full((1, 4), 1.0)))
