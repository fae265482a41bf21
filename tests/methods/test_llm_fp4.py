"""LLM-FP4's choice of formats for whole layers and sites."""

from itertools import pairwise, product

import pytest
import torch

from channelwise.methods import LlmFp4
from channelwise.methods.format_problem import LayerProblem
from channelwise.methods.llm_fp4 import nearest_to_e2
from channelwise.methods.site import Importance
from channelwise.numerics.grids import FloatGrid, IntegerGrid, float_grids
from tests.methods.sites import TensorSite, outlier_site
from tests.methods.test_format_search import problem

FOUR_BITS = float_grids(4)
E2M1 = FloatGrid(2, 1)


def loss(p: LayerProblem, method: LlmFp4, weights=FOUR_BITS, inputs=FOUR_BITS) -> float:
    return float(method.choose_layer(p, weights, inputs).notes["loss"])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("pre_shift", [False, True])
def test_the_search_is_never_worse_than_min_max(seed: int, pre_shift: bool) -> None:
    p = problem(seed)
    notes = LlmFp4(pre_shift=pre_shift).choose_layer(p, FOUR_BITS, FOUR_BITS).notes
    assert notes["loss"] <= notes["loss_min_max"]
    assert loss(p, LlmFp4(pre_shift=pre_shift, rounds=1), (E2M1,), (E2M1,)) <= notes["loss_min_max"]


def test_further_rounds_never_raise_the_loss() -> None:
    """Each half-round keeps what it had unless it finds something better, so the loss can only fall."""
    for seed in range(5):
        losses = [loss(problem(seed), LlmFp4(rounds=rounds)) for rounds in (1, 2, 3, 5)]
        assert all(later <= earlier * (1 + 1e-5) for earlier, later in pairwise(losses))


def test_the_joint_search_of_formats_is_as_good_as_the_best_pair() -> None:
    """One weight and one input format at a time, searched in full, over all pairs."""
    for seed in range(3):
        p = problem(seed)
        pairs = [loss(p, LlmFp4(search="full"), (w,), (x,)) for w, x in product(FOUR_BITS, FOUR_BITS)]
        assert loss(p, LlmFp4(search="full")) <= min(pairs) * 1.05


def test_the_pre_shift_pays_under_outlier_channels() -> None:
    p = problem(2, channels=48)
    assert loss(p, LlmFp4()) < 0.7 * loss(p, LlmFp4(pre_shift=False))


def test_the_recorded_loss_is_that_of_the_chosen_quantizers() -> None:
    p = problem(4)
    chosen = LlmFp4().choose_layer(p, FOUR_BITS, FOUR_BITS)
    from channelwise.numerics.floats import float_lattice

    scale = chosen.parameters.scale
    weight = float_lattice(p.weight / scale, chosen.weights.grid) * scale
    assert chosen.inputs is not None
    steps = chosen.inputs.step * torch.exp2(-chosen.inputs.exponents.float())
    x = float_lattice(p.inputs / steps, chosen.inputs.scheme.grid) * steps
    exact = (p.inputs.double() @ p.weight.double().t() - x.double() @ weight.double().t()).square().sum(dim=1).mean()
    assert chosen.notes["loss"] == pytest.approx(float(exact), rel=1e-4)


def test_importance_moves_the_error_to_where_it_matters_less() -> None:
    p = problem(5, tokens=200, rows=12)
    outputs = torch.full((12,), 1e-3)
    outputs[:3] = 1.0
    weighted = LayerProblem(p.inputs, p.weight, p.largest, Importance(torch.ones(200), outputs))

    def error(q: LayerProblem) -> torch.Tensor:
        chosen = LlmFp4(search="full").choose_layer(q, FOUR_BITS, FOUR_BITS)
        from channelwise.numerics.floats import float_lattice

        steps = chosen.inputs.step * torch.exp2(-chosen.inputs.exponents.float())
        x = float_lattice(p.inputs / steps, chosen.inputs.scheme.grid) * steps
        w = float_lattice(p.weight / chosen.parameters.scale, chosen.weights.grid) * chosen.parameters.scale
        return (p.inputs @ p.weight.t() - x @ w.t()).square().sum(dim=0)

    assert float(error(weighted)[:3].sum()) <= float(error(p)[:3].sum())


def test_inputs_in_floating_point_leave_only_the_weights_to_search() -> None:
    p = problem(6)
    chosen = LlmFp4().choose_layer(p, FOUR_BITS, ())
    assert chosen.inputs is None
    assert 0 < chosen.notes["loss"] < loss(p, LlmFp4())


def test_uniform_weights_take_the_uniform_format() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(16, 64, generator=generator) * 2 - 1
    x = torch.randn(200, 64, generator=generator)
    chosen = LlmFp4().choose_layer(LayerProblem(x, weight, x.abs().amax(dim=0)), FOUR_BITS, ())
    assert chosen.weights.grid == FloatGrid(1, 2)


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_inputs_that_are_all_zero_or_constant_are_quantized_without_a_nan(value: float) -> None:
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    x = torch.full((20, 16), value)
    chosen = LlmFp4().choose_layer(LayerProblem(x, weight, x.abs().amax(dim=0)), FOUR_BITS, FOUR_BITS)
    assert chosen.notes["loss"] == chosen.notes["loss"]
    assert bool(torch.isfinite(chosen.parameters.scale).all())
    assert bool(torch.isfinite(chosen.inputs.step)) and float(chosen.inputs.step) > 0


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_width_has_a_search(bits: int) -> None:
    p = problem(7)
    chosen = LlmFp4(rounds=2).choose_layer(p, float_grids(bits), float_grids(bits))
    assert chosen.weights.grid.bits == bits
    assert chosen.notes["loss"] <= chosen.notes["loss_min_max"]


def test_a_site_gets_quantizers_for_each_of_its_layers() -> None:
    site = outlier_site()
    float_site = FloatSite(site.x, site.weights, site.input_grid)
    choice = LlmFp4().choose(float_site)
    assert len(choice.layers) == len(site.weights)
    assert choice.notes["loss"] == pytest.approx(sum(layer.notes["loss"] for layer in choice.layers))


def test_integer_grids_are_refused() -> None:
    with pytest.raises(ValueError, match="floating-point formats only"):
        LlmFp4().choose(outlier_site(grid=IntegerGrid(4)))


def test_the_plain_format_is_the_one_with_two_exponent_bits() -> None:
    assert nearest_to_e2(FOUR_BITS) == E2M1
    assert nearest_to_e2(float_grids(8)) == FloatGrid(2, 5)
    assert nearest_to_e2((FloatGrid(1, 2),)) == FloatGrid(1, 2)


class FloatSite(TensorSite):
    """A site whose numbers may have any 4-bit format."""

    @property
    def input_grids(self) -> tuple[FloatGrid, ...]:
        return FOUR_BITS

    @property
    def weight_grids(self) -> tuple[FloatGrid, ...]:
        return FOUR_BITS
