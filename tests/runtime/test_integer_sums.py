"""What the integer engine adds up is, bit for bit, what the decoded numbers give in float64."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from channelwise.numerics.granularity import ROW, TENSOR
from channelwise.numerics.grids import FloatGrid, Grid, IntegerGrid
from channelwise.numerics.quantizer import Parameters, encode, fake_quantize, lattice_values, parameters_of
from channelwise.runtime.execution import DecodedExecution, StaticExecution, TokenExecution
from channelwise.runtime.linear import QuantizedLinear
from channelwise.runtime.packed import PackedStatic, PackedToken
from channelwise.runtime.planes import PlaneProduct
from channelwise.runtime.scheme import InputScheme, LinearScheme, WeightScheme
from tests.runtime.layers import assert_equals_definition, build, largest_exponent

E2M1, E1M2, E3M0 = FloatGrid(2, 1), FloatGrid(1, 2), FloatGrid(3, 0)
FOUR_BITS = [E2M1, E1M2, E3M0, IntegerGrid(4)]
EIGHT_BITS = [FloatGrid(1, 6), FloatGrid(2, 5), FloatGrid(3, 4), FloatGrid(4, 3), IntegerGrid(8)]
PAIRS = [*itertools.product(FOUR_BITS, FOUR_BITS), *itertools.product(FOUR_BITS, EIGHT_BITS)]

pytestmark = pytest.mark.usefixtures("kernels_or_torch")
WIDE = {bits: [FloatGrid(e, bits - 1 - e) for e in range(1, bits)] + [IntegerGrid(bits)] for bits in (4, 6, 8)}

STEP = 2.0**-4


def unit(grid: Grid) -> float:
    return float(grid.positive_values()[1]) if isinstance(grid, FloatGrid) else 1.0


def folded(layer: QuantizedLinear, x: torch.Tensor) -> torch.Tensor:
    """Σ_j of 2^−b_j · Q(2^b_j · x_j) and the weight, both in whole numbers of the engine: float64, exact below 2^53."""
    scheme, exponents = layer.scheme, layer.input_exponent
    power = torch.ones(x.shape[1]) if exponents is None else torch.exp2(exponents.float())
    # A matrix quantizer of the same step, which knows nothing of vectors and whole numbers.
    inputs = fake_quantize(x * power, Parameters(torch.full((1, 1), STEP)), scheme.inputs.grid, TENSOR)
    weight = lattice_values(layer.codes(), layer.weight_parameters, scheme.weights.grid, ROW).double()
    return (
        (inputs.double() / STEP / unit(scheme.inputs.grid) / power.double())
        @ (weight.t() / unit(scheme.weights.grid))
        * power.double().max()
    )


def layer_and_input(weights: Grid, inputs: Grid, exponents: bool, sizes, seed: int):
    """A layer whose step is a power of two, and inputs with ties, outliers and values beyond the range."""
    layer = build(
        sizes[0], sizes[1], WeightScheme(weights, ROW), InputScheme(inputs, "static"), False, exponents=exponents,
        seed=seed,
    )  # fmt: skip
    layer.input_step = torch.tensor(STEP)
    spread = torch.exp2(torch.randint(-6, 12, (1, sizes[1])).float())
    x = torch.where(torch.rand(sizes[2], sizes[1]) < 0.3, torch.randint(-9, 10, (sizes[2], sizes[1])) * STEP / 2, 0.0)
    return layer, x + torch.randn(sizes[2], sizes[1]) * spread * (x == 0)


@pytest.mark.parametrize(("weights", "inputs"), PAIRS, ids=str)
@settings(max_examples=12, deadline=None)
@given(
    exponents=st.booleans(),
    sizes=st.tuples(st.integers(1, 20), st.integers(1, 70), st.integers(1, 9)),
    seed=st.integers(0, 2**20),
)
def test_sums_are_those_of_the_decoded_numbers(weights, inputs, exponents, sizes, seed):
    layer, x = layer_and_input(weights, inputs, exponents, sizes, seed)
    sums = layer.integer_sums(x)
    assert sums.dtype == torch.int64
    assert torch.equal(sums.double(), folded(layer, x))


@pytest.mark.parametrize(("weights", "inputs"), PAIRS, ids=str)
@pytest.mark.parametrize("exponents", [True, False])
def test_the_output_is_the_sums_rounded_once_times_one_factor(weights, inputs, exponents):
    layer, x = layer_and_input(weights, inputs, exponents, (16, 64, 5), 0)
    execution = layer._execution()
    assert isinstance(execution, StaticExecution | PackedStatic)
    assert torch.equal(layer(x), layer.integer_sums(x).float() * execution.factor)


@pytest.mark.parametrize(("weights", "inputs"), PAIRS, ids=str)
def test_sums_with_a_step_per_token(weights, inputs):
    layer, x = build(16, 64, WeightScheme(weights, ROW), InputScheme(inputs, "token"), False), torch.randn(5, 64)
    parameters = parameters_of(x, inputs, ROW)
    codes = lattice_values(encode(x, parameters, inputs, ROW), parameters, inputs, ROW).double() / unit(inputs)
    weight = lattice_values(layer.codes(), layer.weight_parameters, weights, ROW).double() / unit(weights)
    sums, execution = layer.integer_sums(x), layer._execution()
    assert isinstance(execution, TokenExecution | PackedToken)
    assert torch.equal(sums.double(), codes @ weight.t())
    assert torch.equal(layer(x), sums.float() * execution.factor * (parameters.scale * unit(inputs)))


@pytest.mark.parametrize("kind", ["static", "token"])
@pytest.mark.parametrize(("weights", "signed"), [(IntegerGrid(8, symmetric=False), False), (FloatGrid(3, 4), True)])
def test_sums_with_zero_points(kind, weights, signed):
    inputs = InputScheme(IntegerGrid(8, symmetric=False), kind)
    layer, x = build(16, 64, WeightScheme(weights, ROW), inputs), torch.randn(5, 64)
    encoded = layer._execution().encoder(x)
    weight = lattice_values(layer.codes(), layer.weight_parameters, weights, ROW).double() / unit(weights)
    expected = (encoded.codes.double() - encoded.zero_point.double()) @ weight.t()
    assert torch.equal(layer.integer_sums(x).double(), expected)
    assert_equals_definition(layer, x)


@pytest.mark.parametrize("bits", WIDE)
@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    kind=st.sampled_from(["static", "token"]),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    exponents=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_every_pair_of_grids_is_its_definition(bits, data, kind, flags, exponents, seed):
    weights = data.draw(st.sampled_from([*WIDE[4], *WIDE[bits]]))
    inputs = InputScheme(data.draw(st.sampled_from(WIDE[bits])), kind)
    layer = build(
        12, 40, WeightScheme(weights, ROW), inputs, *flags, exponents=exponents and kind == "static", seed=seed
    )
    assert_equals_definition(layer, 3 * torch.randn(4, 40))
    assert_equals_definition(layer, torch.zeros(2, 40))


@pytest.mark.parametrize("inputs", [FloatGrid(6, 1), FloatGrid(7, 0)], ids=str)
def test_the_widest_grids_are_computed_decoded(inputs):
    layer = build(12, 40, WeightScheme(E2M1, ROW), InputScheme(inputs, "static"), exponents=True)
    assert layer.integer_sums(torch.randn(3, 40)) is None
    assert isinstance(layer._execution(), DecodedExecution)
    assert_equals_definition(layer, torch.randn(3, 40))


def test_powers_too_far_apart_are_computed_decoded():
    layer = build(12, 40, WeightScheme(E2M1, ROW), InputScheme(IntegerGrid(8), "static"), exponents=True)
    layer.input_exponent = torch.tensor([0] * 39 + [255], dtype=torch.uint8)
    assert layer.integer_sums(torch.randn(3, 40)) is None
    assert_equals_definition(layer, torch.randn(3, 40))


def test_a_power_that_all_channels_share_costs_nothing():
    scheme = LinearScheme(40, 12, WeightScheme(E2M1, ROW), InputScheme(E2M1, "static"), exponents=True)
    parameters = Parameters(torch.ones(12, 1))
    codes, x = torch.randint(-7, 8, (12, 40)).to(torch.int16), torch.randn(3, 40)
    layers = [
        QuantizedLinear.from_parts(
            scheme, codes, parameters, input_step=torch.tensor(step), input_exponent=torch.full((40,), exponent)
        )
        for step, exponent in ((0.25, 0), (2.0, 3))
    ]
    assert torch.equal(layers[0].integer_sums(x), layers[1].integer_sums(x))
    assert torch.equal(layers[0](x), layers[1](x))


@pytest.mark.parametrize("weights", [E2M1, E1M2], ids=str)
def test_four_bits_need_one_product_whatever_the_exponents(weights):
    # methods.md: E2M1 weights times 2^(3 − b_j) are at most 12 · 8.
    inputs = InputScheme(E2M1, "static")
    for seed in range(5):
        layer = build(12, 40, WeightScheme(weights, ROW), inputs, exponents=True, seed=seed)
        execution = layer._execution()
        assert isinstance(execution, PackedStatic) or not isinstance(execution.product, PlaneProduct)


def test_a_layer_of_inputs_in_floating_point_has_no_sums():
    assert build(6, 10, WeightScheme(E2M1, ROW), None).integer_sums(torch.randn(2, 10)) is None


def test_sums_keep_the_leading_shape():
    layer = build(6, 10, WeightScheme(E2M1, ROW), InputScheme(E2M1, "static"))
    assert layer.integer_sums(torch.randn(2, 3, 10)).shape == (2, 3, 6)
    assert largest_exponent(layer.scheme.inputs) == 3
