"""Rounding of a site's weights: AdaDim's choice of direction, over nearest and over GPTQ."""

from collections.abc import Iterable

import pytest
import torch

from channelwise.engine.plan import Plan, SitePlan, WeightPlan
from channelwise.engine.rounding import Rounded, SiteRounding
from channelwise.engine.statistics import joined_hessian
from channelwise.engine.walk import quantize_model
from channelwise.engine.world import ALONE, World
from channelwise.methods import Awq, NoTransform, OutlierSuppressionPlus
from channelwise.methods.gptq import Gptq, factor
from channelwise.methods.hessian import Hessian, HessianBuilder
from channelwise.methods.site import LayerChoice
from channelwise.methods.triangular import PANEL
from channelwise.numerics.granularity import ROW, Granularity
from channelwise.numerics.grids import FloatGrid, Grid, IntegerGrid
from channelwise.numerics.quantizer import Parameters, decode, encode, parameters_of
from channelwise.numerics.transform import ChannelTransform
from channelwise.runtime.linear import QuantizedLinear
from channelwise.runtime.scheme import WeightScheme
from tests.engine.ranks import run_ranks
from tests.engine.test_walk import BATCHES, IDS, error, tiny_llama

GRID = IntegerGrid(3, symmetric=False)
OC, IC = Granularity("row_group", 16), Granularity("column_group", 16)
ROUNDINGS = [None, Gptq()]


def hessian_of(x: torch.Tensor) -> Hessian:
    builder = HessianBuilder(x.shape[-1])
    builder.update(x)
    return builder.finish()


def chosen(
    weight: torch.Tensor, x: torch.Tensor, rounding: Gptq | None, alternative: Granularity | None = IC
) -> LayerChoice:
    """The choice for one layer by its own output."""
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data = weight
    plan = WeightPlan((GRID,), OC, alternative=alternative, choose_on="own", rounding=rounding)

    def never(name: str, values: Iterable[torch.Tensor]) -> float:
        raise AssertionError("asked for the part's loss")

    site = SiteRounding(plan, ChannelTransform(), hessian_of(x), never, "layer")
    scheme = WeightScheme(GRID, OC)
    return site.layer(linear, "layer", LayerChoice(scheme, parameters_of(weight, GRID, OC), None))


WIDEST = [IntegerGrid(8), IntegerGrid(8, symmetric=False), FloatGrid(4, 3), FloatGrid(5, 2), FloatGrid(1, 2)]


@pytest.mark.parametrize("grid", WIDEST, ids=str)
def test_every_code_of_a_grid_fits_a_byte(grid: Grid) -> None:
    codes = torch.arange(grid.lowest, grid.highest + 1, dtype=torch.int16)[:, None]
    parameters = Parameters(torch.rand(len(codes), 1) + 0.5)
    rounded = Rounded(WeightScheme(grid, ROW), parameters, (codes - grid.lowest).to(torch.uint8))
    assert rounded.codes.dtype == torch.int16
    assert torch.equal(rounded.codes, codes)
    values = decode(codes, parameters, grid, ROW)
    assert torch.equal(torch.cat([*rounded.values()]), values)
    assert torch.equal(rounded.values_of(slice(3, 5)), values[3:5])


def data(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(32, 48, generator=generator), torch.randn(300, 48, generator=generator), generator


@pytest.mark.parametrize("transposed", [False, True])
def test_rounding_leaves_the_model_s_own_weight_as_it_is(transposed: bool) -> None:
    weight, x, _ = data(0)
    own = weight.t().contiguous().t() if transposed else weight.clone()
    codes = chosen(own, x, Gptq()).codes
    assert torch.equal(own, weight)
    expected = chosen(weight.clone(), x, Gptq()).codes
    assert codes is not None and expected is not None and torch.equal(codes, expected)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("seed", range(4))
def test_the_chosen_direction_has_the_lower_loss(seed: int, rounding: Gptq | None) -> None:
    weight, x, _ = data(seed)
    notes = chosen(weight, x, rounding).notes
    assert notes["loss_own"] == min(notes["loss_oc"], notes["loss_ic"])
    assert (notes["direction"] == "oc") == (notes["loss_oc"] <= notes["loss_ic"])


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_columns_of_unequal_spread_want_groups_down_the_columns_and_rows_along_the_rows(rounding: Gptq | None) -> None:
    weight, x, generator = data(0)
    spread = torch.exp(1.5 * torch.randn(48, generator=generator))
    assert chosen(weight * spread, x / spread, rounding).notes["direction"] == "ic"
    assert (
        chosen(weight * torch.exp(1.5 * torch.randn(32, 1, generator=generator)), x, rounding).notes["direction"]
        == "oc"
    )


def test_a_tie_goes_to_output_channels() -> None:
    weight, x, _ = data(1)
    choice = chosen(torch.zeros_like(weight), x, None)
    assert choice.notes["loss_oc"] == choice.notes["loss_ic"] == 0.0
    assert choice.notes["direction"] == "oc"


def test_without_gptq_and_alternative_the_codes_are_the_nearest() -> None:
    weight, x, _ = data(2)
    choice = chosen(weight, x, None, alternative=None)
    assert torch.equal(choice.codes, encode(weight, choice.parameters, GRID, OC))


def test_gptq_lowers_the_output_error_under_correlated_inputs() -> None:
    weight, x, generator = data(3)
    mixed = x @ torch.randn(48, 48, generator=generator)
    assert chosen(weight, mixed, Gptq()).notes["loss_own"] < 0.7 * chosen(weight, mixed, None).notes["loss_own"]


WIDE = 2 * PANEL + 76


def joint_factor(world: World) -> tuple[torch.Tensor, torch.Tensor]:
    """The Hessian and the factor of it, each rank with its part of 600 tokens: whole numbers, for exact sums."""
    x = torch.randint(-3, 4, (600, WIDE), generator=torch.Generator().manual_seed(0)).float()
    builder = HessianBuilder(WIDE)
    builder.update(x[world.rows(600)])
    found = factor(joined_hessian(builder, world).finish().matrix, Gptq(), "layer", world)
    return found.memory.triu(), found.effects


def test_ranks_make_one_factor_of_one_hessian_together() -> None:
    matrix, effects = joint_factor(ALONE)
    for own_matrix, own_effects in run_ranks(joint_factor, 2):
        assert torch.equal(own_matrix, matrix)
        # Sums in float64 in another order, then one rounding to float32.
        torch.testing.assert_close(own_effects, effects, rtol=2.0**-23, atol=1e-9)


def weight_only(rounding: Gptq | None, alternative: Granularity | None = IC, method=NoTransform(), **others) -> Plan:  # noqa: B008
    weights = WeightPlan((GRID,), OC, alternative=alternative, rounding=rounding, **others)
    return Plan(weights, SitePlan(method, None), SitePlan(NoTransform(), None))


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_every_layer_of_a_model_records_its_direction_and_both_losses(rounding: Gptq | None) -> None:
    model = tiny_llama()
    record = quantize_model(model, BATCHES, weight_only(rounding))
    layers = {name: notes for site in record.sites for name, notes in site.layers.items()}
    assert len(layers) == 14
    for name, notes in layers.items():
        module = model.get_submodule(name)
        assert isinstance(module, QuantizedLinear)
        expected = "row_group" if notes["direction"] == "oc" else "column_group"
        assert module.scheme.weights.granularity == Granularity(expected, 16)
        assert (notes["direction"] == "oc") == (notes["loss_oc"] <= notes["loss_ic"])


def test_the_loss_of_q_is_that_behind_the_attention_or_of_its_own_output() -> None:
    part = quantize_model(tiny_llama(), BATCHES, weight_only(None)).sites[0].layers
    own = quantize_model(tiny_llama(), BATCHES, weight_only(None, choose_on="own")).sites[0].layers
    name = "model.layers.0.self_attn.q_proj"
    assert own[name]["loss_own"] == min(own[name]["loss_oc"], own[name]["loss_ic"])
    assert part[name]["loss_oc"] != own[name]["loss_oc"]


@pytest.mark.parametrize("method", [NoTransform(), Awq(), OutlierSuppressionPlus()])
def test_gptq_follows_any_transform(method: object) -> None:
    errors = {}
    for rounding in ROUNDINGS:
        model = tiny_llama()
        quantize_model(model, BATCHES, weight_only(rounding, None, method))
        errors[rounding] = error(model)
    assert 0 < errors[ROUNDINGS[1]] < errors[None]


def test_awqs_transform_and_cut_ranges_lower_the_error() -> None:
    errors = {}
    for name, method, clip in (("rtn", NoTransform(), False), ("awq", Awq(), True)):
        model = tiny_llama()
        quantize_model(model, BATCHES, weight_only(None, None, method, search_clip=clip))
        errors[name] = error(model)
    assert errors["awq"] < errors["rtn"]


def test_three_bits_take_three_bits() -> None:
    model = tiny_llama()
    quantize_model(model, BATCHES, weight_only(None))
    layer = model.model.layers[0].mlp.down_proj
    groups = layer.scheme.in_features * layer.scheme.out_features / 16
    assert layer.weight_scale.dtype == torch.float16
    exact = 3 + (16 + 3) * groups / (layer.scheme.in_features * layer.scheme.out_features)
    # Rows of zero points end on whole bytes.
    assert exact <= layer.bits_per_weight() <= exact + 8 / min(layer.scheme.in_features, 16)
    assert torch.isfinite(model(IDS).logits).all()


def test_fewer_tokens_than_channels_are_warned_of() -> None:
    few = [{"input_ids": IDS[:1, :20]}]
    warned = [site for site in quantize_model(tiny_llama(), few, weight_only(Gptq())).sites if "warning" in site.notes]
    assert {site.channels for site in warned} == {32, 48}
    assert len(warned) == 8
    assert not any("warning" in site.notes for site in quantize_model(tiny_llama(), BATCHES, weight_only(Gptq())).sites)
    assert not any("warning" in site.notes for site in quantize_model(tiny_llama(), few, weight_only(None)).sites)
