"""The walk with searched floating-point formats, over blocks, head and embedding."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from channelwise.checkpoint.loader import load_checkpoint
from channelwise.checkpoint.writer import save_checkpoint
from channelwise.engine import walk
from channelwise.engine.experts import MINIMUM_TOKENS
from channelwise.engine.plan import EmbeddingPlan, InputPlan, Plan, SitePlan, WalkRecord, WeightPlan
from channelwise.engine.walk import quantize_model
from channelwise.errors import NumericalError
from channelwise.methods import LlmFp4, NoTransform
from channelwise.model.blocks import find_blocks
from channelwise.model.experts import unfuse_experts
from channelwise.model.linears import linear_names
from channelwise.numerics.granularity import ROW
from channelwise.numerics.grids import FloatGrid, float_grids, grid_name
from channelwise.runtime.embedding import QuantizedEmbedding
from channelwise.runtime.linear import QuantizedLinear
from channelwise.runtime.scheme import InputScheme, WeightScheme
from tests.checkpoint import tiny
from tests.engine.test_walk import BATCHES, IDS, error, plan, tiny_llama
from tests.model.tiny_models import tiny_batch, tiny_model, tiny_output

E2M1 = FloatGrid(2, 1)
FOUR_BITS = float_grids(4)
EMBEDDING = EmbeddingPlan(FOUR_BITS, search=True)


def float_plan(method: Any = LlmFp4(rounds=2), grids: tuple[FloatGrid, ...] = FOUR_BITS, **others: Any) -> Plan:  # noqa: B008
    site = SitePlan(method, InputPlan(grids, "static"))
    return Plan(WeightPlan(grids, ROW), site, site, **{"calibrate_on": "original", **others})


def whole_plan(**others: Any) -> Plan:
    """Head and embedding too."""
    plan = float_plan(**others)
    return replace(plan, head=plan.stream, embedding=EMBEDDING)


def quantized_layers(model: torch.nn.Module) -> dict[str, QuantizedLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}


def chosen(model: torch.nn.Module, record: WalkRecord) -> dict[str, dict[str, Any]]:
    """The record's layers, each of which the model has."""
    layers = {name: notes for site in record.sites for name, notes in site.layers.items()}
    assert layers.keys() == quantized_layers(model).keys()
    return layers


def test_every_layer_of_a_float_plan_has_a_searched_format_of_its_width() -> None:
    model = tiny_llama()
    record = quantize_model(model, BATCHES, float_plan())
    layers = quantized_layers(model)
    assert len(layers) == 14
    for layer in layers.values():
        weights, inputs = layer.scheme.weights, layer.scheme.inputs
        assert weights.grid in FOUR_BITS and inputs.grid in FOUR_BITS
        assert (weights.granularity, inputs.kind, layer.scheme.exponents) == (ROW, "static", True)
        assert layer.input_exponent.shape == (layer.in_features,)
        assert int(layer.input_exponent.max()) < 2**inputs.grid.exponent_bits
    for name, notes in chosen(model, record).items():
        scheme = layers[name].scheme
        assert notes["loss"] <= notes["loss_min_max"]
        assert (notes["weights"], notes["inputs"]) == (grid_name(scheme.weights.grid), grid_name(scheme.inputs.grid))
        assert 2.0 ** -notes["input_bias"] == pytest.approx(float(layers[name].input_step), rel=1e-6)
        assert notes["largest_exponent"] == float(layers[name].input_exponent.max())


def test_the_recorded_loss_is_that_of_the_layer_that_the_walk_leaves_behind() -> None:
    """All tokens are searched, so it is the mean over them of the squared error at the layer's own input."""
    model, exact = tiny_llama(), tiny_llama()
    layers = chosen(model, quantize_model(model, BATCHES, float_plan()))
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
    for name in layers:
        module = exact.get_submodule(name)
        module.register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0].detach()))
    with torch.no_grad():
        for batch in BATCHES:
            exact(**batch)
        for name, notes in layers.items():
            x = torch.cat(seen[name]).flatten(0, 1)
            error = model.get_submodule(name)(x) - exact.get_submodule(name)(x)
            assert notes["loss"] == pytest.approx(float(error.square().sum(dim=1).mean()), rel=1e-3)


def test_a_search_has_less_error_than_min_max_and_a_pre_shift_less_than_none_under_outlier_channels() -> None:
    errors = {}
    plans = {
        "min-max": float_plan(NoTransform(), (E2M1,)),
        "search": float_plan(LlmFp4(pre_shift=False)),
        "llm-fp4": float_plan(LlmFp4()),
    }
    for name, searched in plans.items():
        model = tiny_llama()
        quantize_model(model, BATCHES, searched)
        errors[name] = error(model)
    assert errors["llm-fp4"] < errors["search"] < errors["min-max"]


def test_a_search_finds_the_same_formats_for_the_same_seed() -> None:
    states = []
    for seed in (3, 3, 4):
        model = tiny_llama()
        quantize_model(model, BATCHES, whole_plan(search_tokens=40), seed=seed)
        states.append(model.state_dict())
    assert all(torch.equal(states[1][name], tensor) for name, tensor in states[0].items())
    assert any(not torch.equal(states[2][name], tensor) for name, tensor in states[0].items())


def test_on_the_original_model_no_site_sees_quantized_layers_before_it() -> None:
    """Neither those of earlier blocks nor those of its own; the floating-point model's statistics are all there is."""

    def largest(bits: int, **others: Any) -> list[float]:
        model = tiny_llama()
        return [site.largest for site in quantize_model(model, BATCHES, plan(bits, **others)).sites]

    original = [largest(bits, calibrate_on="original") for bits in (2, 8)]
    assert original[0] == original[1]
    quantized = [largest(bits, calibrate_on="quantized") for bits in (2, 8)]
    assert all(two != eight for two, eight in zip(quantized[0][1:], quantized[1][1:], strict=True))
    seen: list[torch.Tensor] = []
    exact = tiny_llama()
    exact.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    with torch.no_grad():
        for batch in BATCHES:
            exact(**batch)
    assert original[0][-1] == float(torch.cat(seen).abs().amax())


@pytest.mark.parametrize("calibrate_on", ["original", "quantized"])
def test_layers_are_replaced_at_the_end_of_their_block(calibrate_on: str) -> None:
    model = tiny_llama()
    replaced: list[tuple[int, ...]] = []

    def progress(label: str, done: int, total: int) -> None:
        blocks = [*model.model.layers, model.lm_head]
        replaced.append(tuple(sum(isinstance(m, QuantizedLinear) for m in block.modules()) for block in blocks))

    quantize_model(model, BATCHES, whole_plan(calibrate_on=calibrate_on), progress=progress)
    assert replaced == [(0, 0, 0), (0, 0, 0), (7, 0, 0), (7, 7, 0), (7, 7, 1)]


@pytest.mark.parametrize("calibrate_on", ["original", "quantized"])
def test_head_and_embedding_are_quantized_and_recorded(calibrate_on: str) -> None:
    model = tiny_llama()
    events: list[tuple[str, int, int]] = []
    record = quantize_model(
        model, BATCHES, whole_plan(calibrate_on=calibrate_on), progress=lambda *event: events.append(event)
    )
    table = model.get_input_embeddings()
    assert isinstance(table, QuantizedEmbedding)
    assert isinstance(model.lm_head, QuantizedLinear) and model.lm_head.scheme.exponents
    assert record.embedding == {"weights": grid_name(table.scheme.weights.grid), "rows": 64.0}
    assert [site.kind for site in record.sites] == ["stream", "inner"] * 4 + ["head"]
    head = record.sites[-1]
    assert (head.name, head.linears, head.channels, head.tokens) == ("lm_head", ("lm_head",), 32, IDS.numel())
    assert chosen(model, record)["lm_head"]["loss"] <= chosen(model, record)["lm_head"]["loss_min_max"]
    assert events[-2:] == [("output layer", 2, 3), ("done", 3, 3)]
    assert bool(torch.isfinite(model(IDS).logits).all())


def test_the_head_sees_what_the_final_norm_gives() -> None:
    """On the original model that is the floating-point model's own input of the head."""
    seen: list[torch.Tensor] = []
    exact = tiny_llama()
    exact.lm_head.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    with torch.no_grad():
        for batch in BATCHES:
            exact(**batch)
    assert quantize_model(tiny_llama(), BATCHES, whole_plan()).sites[-1].largest == float(torch.cat(seen).abs().amax())


def test_blocks_that_calibrate_on_the_quantized_model_see_the_quantized_embedding() -> None:
    record = quantize_model(tiny_llama(), BATCHES, whole_plan(calibrate_on="quantized"))
    without = quantize_model(tiny_llama(), BATCHES, float_plan(calibrate_on="quantized"))
    assert record.sites[0].largest != without.sites[0].largest
    on_original = quantize_model(tiny_llama(), BATCHES, whole_plan())
    assert on_original.sites[0].largest == without.sites[0].largest


def test_head_and_embedding_without_a_plan_stay_as_they_are() -> None:
    model = tiny_llama()
    record = quantize_model(model, BATCHES, float_plan())
    assert type(model.lm_head) is torch.nn.Linear
    assert type(model.get_input_embeddings()) is torch.nn.Embedding
    assert record.embedding == {}
    assert "head" not in {site.kind for site in record.sites}
    head_only = tiny_llama()
    quantize_model(head_only, BATCHES, replace(whole_plan(), embedding=None))
    assert isinstance(head_only.lm_head, QuantizedLinear)
    assert type(head_only.get_input_embeddings()) is torch.nn.Embedding


@pytest.mark.parametrize("pattern", ["lm_head", "*head"])
def test_an_excluded_head_stays_floating_point(pattern: str) -> None:
    model = tiny_llama()
    record = quantize_model(model, BATCHES, whole_plan(exclude=(pattern,)))
    assert type(model.lm_head) is torch.nn.Linear
    assert isinstance(model.get_input_embeddings(), QuantizedEmbedding)
    assert "head" not in {site.kind for site in record.sites}


def test_a_plan_for_the_head_does_not_concern_a_model_without_one() -> None:
    model = tiny_model("bert", torch.float32)
    record = quantize_model(model, [tiny_batch(model)], whole_plan())
    assert {site.kind for site in record.sites} == {"stream", "inner"}
    assert isinstance(model.get_input_embeddings(), QuantizedEmbedding)


def test_a_tied_head_and_embedding_are_quantized_each_on_its_own() -> None:
    model = tiny.tied_llama().eval()
    quantize_model(model, BATCHES, whole_plan())
    assert isinstance(model.lm_head, QuantizedLinear)
    assert isinstance(model.get_input_embeddings(), QuantizedEmbedding)
    assert bool(torch.isfinite(model(IDS).logits).all())


@pytest.mark.parametrize(
    "searched", [whole_plan(), replace(whole_plan(), head=None), float_plan()], ids=["whole", "embedding", "blocks"]
)
@pytest.mark.parametrize("tied", [False, True])
def test_what_is_written_comes_back_bit_by_bit(searched: Plan, tied: bool, tmp_path: Path) -> None:
    model = tiny.tied_llama().eval() if tied else tiny_llama()
    record = quantize_model(model, BATCHES, searched)
    facts = {"recipe": {"name": "by-hand"}, "source_name": "tiny", "record": asdict(record)}
    save_checkpoint(model, None, tmp_path / "out", overwrite=False, **facts)
    loaded, _ = load_checkpoint(tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    assert loaded.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    ("name", "objective", "asked"),
    [
        ("bert", "auto", True),
        ("vit", "auto", True),
        ("bert", "output", False),
        ("llama", "auto", False),
        ("llama", "fisher", True),
    ],
)
def test_only_models_that_do_not_generate_text_have_their_outputs_weighed_unless_it_is_said(
    name: str, objective: str, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []
    real = walk.output_importance

    def counted(*arguments: Any) -> Any:
        calls.append(list(arguments[2]))
        return real(*arguments)

    monkeypatch.setattr(walk, "output_importance", counted)
    model = tiny_model(name, torch.float32)
    linears = [n for n in linear_names(model) if n.startswith(find_blocks(model).prefix)]
    quantize_model(model, [tiny_batch(model)], float_plan(objective=objective))
    assert calls == ([linears] if asked else [])


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_the_fisher_information_changes_the_choice(name: str) -> None:
    states = {}
    for objective in ("auto", "fisher", "output"):
        model = tiny_model(name, torch.float32)
        quantize_model(model, [tiny_batch(model)], float_plan(objective=objective))
        states[objective] = quantized_layers(model)
    for layer, auto in states["auto"].items():
        assert torch.equal(auto.weight_scale, states["fisher"][layer].weight_scale)
    assert any(
        not torch.equal(auto.weight_scale, states["output"][layer].weight_scale)
        for layer, auto in states["auto"].items()
    )


def test_a_head_has_its_importance_too() -> None:
    heads = []
    for objective in ("auto", "output"):
        torch.manual_seed(0)
        model = tiny.bert_masked().eval()
        record = quantize_model(model, [tiny_batch(model)], whole_plan(objective=objective))
        assert record.sites[-1].kind == "head"
        heads.append(record.sites[-1].layers)
    assert heads[0] != heads[1]


@pytest.mark.parametrize("broken", ["weight", "input"])
@pytest.mark.parametrize("objective", ["output", "fisher"])
def test_a_search_stops_at_what_is_not_finite(broken: str, objective: str) -> None:
    model = tiny_llama()
    if broken == "weight":
        model.model.layers[1].mlp.up_proj.weight.data[3, 4] = torch.nan
    else:
        model.model.layers[1].post_attention_layernorm.weight.data[3] = torch.inf
    with pytest.raises(NumericalError, match=r"model\.layers\.1\.mlp\.(up|gate)_proj: its " + broken):
        quantize_model(model, BATCHES, whole_plan(objective=objective))


@pytest.mark.parametrize("calibrate_on", ["original", "quantized"])
@pytest.mark.parametrize("objective", ["output", "fisher"])
def test_experts_that_few_tokens_reached_get_e2m1_with_their_siblings_range(calibrate_on: str, objective: str) -> None:
    model = tiny_model("mixtral", torch.float32)
    unfuse_experts(model)
    record = quantize_model(
        model,
        [{"input_ids": torch.tensor([[5]])}],
        whole_plan(calibrate_on=calibrate_on, objective=objective),
    )
    silent = {linear for site in record.sites if site.tokens == 0 for linear in site.linears}
    # One token goes to two of the four experts of each of the two layers, and an expert has three linear layers.
    assert len(silent) == 2 * 2 * 3
    layers = quantized_layers(model)
    few = {linear for site in record.sites if ".experts." in site.name for linear in site.linears}
    assert silent < few
    for name in few:
        assert layers[name].scheme.weights == WeightScheme(E2M1, ROW)
        assert layers[name].scheme.inputs == InputScheme(E2M1, "static")
    searched = {name for site in record.sites for name in site.layers}
    assert searched == layers.keys() - few
    assert bool(torch.isfinite(tiny_output(model, tiny_batch(model))).all())


def test_an_expert_that_gets_other_tokens_than_in_the_original_is_searched_without_their_importance() -> None:
    """Two bits before it change where tokens are sent, so that what is known of them does not belong to its input."""
    tokens = []
    for calibrate_on in ("original", "quantized"):
        model = tiny_model("mixtral", torch.float32)
        unfuse_experts(model)
        coarse = float_plan(grids=float_grids(2), calibrate_on=calibrate_on, objective="fisher")
        record = quantize_model(model, [tiny_batch(model, rows=12, tokens=24)], coarse)
        tokens.append([site.tokens for site in record.sites])
        assert all(set(site.layers) == set(site.linears) for site in record.sites if site.tokens >= MINIMUM_TOKENS)
    assert tokens[0] != tokens[1]


def test_inputs_in_floating_point_stay_so() -> None:
    model = tiny_llama()
    site = SitePlan(LlmFp4(), None)
    quantize_model(model, BATCHES, Plan(WeightPlan(FOUR_BITS, ROW), site, site, head=site))
    layers = quantized_layers(model)
    assert len(layers) == 15
    assert {layer.scheme.inputs for layer in layers.values()} == {None}
