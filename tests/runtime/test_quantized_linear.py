"""The integer layer is its definition, `fake_forward`, up to the rounding of float32."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from channelwise.numerics.granularity import ROW, TENSOR, Granularity
from channelwise.numerics.grids import FloatGrid, Grid, IntegerGrid
from channelwise.numerics.quantizer import encode, parameters_of
from channelwise.runtime.cpu import library
from channelwise.runtime.linear import QuantizedLinear
from channelwise.runtime.packed import takes_integers
from channelwise.runtime.scheme import InputScheme, LinearScheme, WeightScheme, is_asymmetric
from tests.runtime.layers import assert_equals_definition, build

pytestmark = pytest.mark.usefixtures("kernels_or_torch")

GRANULARITIES = [TENSOR, ROW, Granularity("column"), Granularity("row_group", 5), Granularity("column_group", 3)]


grids = st.one_of(
    st.builds(IntegerGrid, st.integers(2, 8), st.booleans()),
    st.sampled_from([FloatGrid(2, 1), FloatGrid(1, 2), FloatGrid(3, 0), FloatGrid(2, 3), FloatGrid(3, 2)]),
)
input_schemes = st.none() | st.builds(InputScheme, grids, st.sampled_from(["static", "token"]))


@settings(max_examples=120, deadline=None)
@given(
    grid=grids,
    granularity=st.sampled_from(GRANULARITIES),
    inputs=input_schemes,
    sizes=st.tuples(st.integers(1, 20), st.integers(1, 70), st.integers(0, 9)),
    has=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 1000),
)
def test_forward_is_its_definition(
    grid: Grid,
    granularity: Granularity,
    inputs: InputScheme | None,
    sizes: tuple[int, int, int],
    has: tuple[bool, bool, bool],
    dtype: torch.dtype,
    seed: int,
) -> None:
    rows, columns, tokens = sizes
    layer = build(rows, columns, WeightScheme(grid, granularity), inputs, *has, seed=seed)
    assert_equals_definition(layer, (3 * torch.randn(tokens, columns)).to(dtype))


IN_PANELS = [Granularity("row_group", 32), Granularity("column_group", 16), Granularity("column")]


@settings(max_examples=60, deadline=None)
@given(
    grid=grids,
    granularity=st.sampled_from(IN_PANELS),
    input_grid=grids | st.sampled_from([FloatGrid(4, 3), FloatGrid(5, 2)]),
    static=st.booleans(),
    sizes=st.tuples(st.integers(1, 50), st.integers(1, 200), st.sampled_from([1, 2, 16, 17, 40, 260])),
    exponents=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 1000),
)
def test_quantized_inputs_with_weights_in_groups_are_their_definition(
    grid: Grid,
    granularity: Granularity,
    input_grid: Grid,
    static: bool,
    sizes: tuple[int, int, int],
    exponents: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    rows, columns, tokens = sizes
    inputs = InputScheme(input_grid, "static" if static else "token")
    weights, exponents = WeightScheme(grid, granularity), exponents and static and not is_asymmetric(input_grid)
    layer = build(rows, columns, weights, inputs, True, scale=True, exponents=exponents, seed=seed)
    assert_equals_definition(layer, (3 * torch.randn(tokens, columns)).to(dtype))


W8, A8 = WeightScheme(IntegerGrid(8), ROW), InputScheme(IntegerGrid(8), "static")
TOKEN = InputScheme(IntegerGrid(8, symmetric=False), "token")


@pytest.mark.parametrize("inputs", [A8, TOKEN, InputScheme(IntegerGrid(8, symmetric=False), "static"), None])
def test_shapes(inputs: InputScheme | None) -> None:
    layer = build(6, 10, W8, inputs)
    assert layer(torch.randn(2, 3, 4, 10)).shape == (2, 3, 4, 6)
    assert layer(torch.randn(10)).shape == (6,)
    assert layer(torch.randn(2, 0, 10)).shape == (2, 0, 6)
    assert_equals_definition(layer, torch.zeros(3, 10))


def test_inputs_out_of_range_saturate() -> None:
    layer = build(6, 10, W8, A8)
    assert torch.equal(layer(torch.full((1, 10), 1e30)), layer(torch.full((1, 10), 2.0)))
    assert torch.equal(layer(torch.full((1, 10), float("-inf"))), layer(torch.full((1, 10), -2.0)))


@pytest.mark.parametrize("value", [-40.0, 300.0])
@pytest.mark.parametrize("symmetric", [True, False])
def test_zero_point_outside_the_codes(value: float, symmetric: bool) -> None:
    weights = WeightScheme(IntegerGrid(8, symmetric), ROW)
    layer = build(6, 10, weights, InputScheme(IntegerGrid(8, symmetric=False), "static"))
    layer.input_zero_point = torch.tensor(value)
    assert_equals_definition(layer, 3 * torch.randn(5, 10))


def test_weight_of_zeros() -> None:
    for symmetric in (True, False):
        grid = IntegerGrid(8, symmetric)
        parameters = parameters_of(torch.zeros(4, 7), grid, ROW)
        scheme = LinearScheme(7, 4, WeightScheme(grid, ROW), InputScheme(IntegerGrid(8), "token"))
        layer = QuantizedLinear.from_parts(scheme, encode(torch.zeros(4, 7), parameters, grid, ROW), parameters)
        assert torch.equal(layer(torch.randn(3, 7)), torch.zeros(3, 4))


@pytest.mark.parametrize(("bits", "symmetric"), [(8, True), (6, True), (4, False)])
def test_size(bits: int, symmetric: bool) -> None:
    layer = build(16, 128, WeightScheme(IntegerGrid(bits, symmetric), ROW), None)
    assert layer.weight_packed.numel() == 16 * 128 * bits // 8
    assert layer.bits_per_weight() == bits + (32 if symmetric else 40) / 128


def test_float32_buffers_stay_float32() -> None:
    layer = build(6, 10, WeightScheme(IntegerGrid(4, symmetric=False), ROW), A8, shift=True, scale=True)
    x = torch.randn(4, 10)
    before = layer(x)
    for convert in (lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.double()):
        layer = convert(layer)
        assert layer.weight_scale.dtype == layer.input_shift.dtype == layer.bias.dtype == torch.float32
        assert torch.equal(layer(x), before)


def test_copies_and_state_dicts() -> None:
    layer = build(6, 10, W8, A8, scale=True)
    x = torch.randn(4, 10)
    expected = layer(x)
    assert set(layer.state_dict()) == {"weight_packed", "weight_scale", "bias", "input_scale", "input_step"}
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), expected)
    for assign in (True, False):
        other = build(6, 10, W8, A8, scale=True, seed=1)
        assert not torch.equal(other(x), expected)
        other.load_state_dict(layer.state_dict(), assign=assign)
        assert torch.equal(other(x), expected)


def test_meta_device() -> None:
    layer = build(6, 10, W8, A8)
    empty = QuantizedLinear(layer.scheme, device="meta")
    assert {tensor.device.type for tensor in empty.state_dict().values()} == {"meta"}
    empty.load_state_dict(layer.state_dict(), assign=True)
    x = torch.randn(2, 10)
    assert torch.equal(empty(x), layer(x))


def test_prepared_under_inference_mode_works_outside() -> None:
    layer, x = build(6, 10, W8, TOKEN), torch.randn(2, 10)
    with torch.inference_mode():
        inside = layer(x)
    assert torch.equal(layer(x.requires_grad_()), inside)


def test_from_parts_checks_the_parts() -> None:
    scheme = LinearScheme(10, 6, W8, A8, bias=True)
    codes = torch.zeros(6, 10, dtype=torch.int16)
    parameters = parameters_of(torch.ones(6, 10), W8.grid, ROW)
    with pytest.raises(ValueError, match="bias is missing"):
        QuantizedLinear.from_parts(scheme, codes, parameters, input_step=torch.tensor(1.0))
    with pytest.raises(ValueError, match="bias has shape"):
        QuantizedLinear.from_parts(scheme, codes, parameters, torch.zeros(5), input_step=torch.tensor(1.0))


@pytest.mark.parametrize(("grid", "largest"), [(FloatGrid(2, 1), 3), (FloatGrid(3, 0), 7), (IntegerGrid(8), 255)])
def test_from_parts_checks_the_exponents(grid: Grid, largest: int) -> None:
    scheme = LinearScheme(10, 6, W8, InputScheme(grid, "static"), exponents=True)
    parts = (scheme, torch.zeros(6, 10, dtype=torch.int16), parameters_of(torch.ones(6, 10), W8.grid, ROW))
    step, exponents = torch.tensor(1.0), torch.full((10,), largest)
    assert QuantizedLinear.from_parts(*parts, input_step=step, input_exponent=exponents).input_exponent is not None
    with pytest.raises(ValueError, match="input_exponent is missing"):
        QuantizedLinear.from_parts(*parts, input_step=step)
    for wrong in (largest + 1, -1):
        exponents[3] = wrong
        with pytest.raises(ValueError, match=f"outside 0 … {largest}"):
            QuantizedLinear.from_parts(*parts, input_step=step, input_exponent=exponents)


def kept(weights: WeightScheme, inputs: InputScheme | None) -> QuantizedLinear:
    layer = build(48, 70, weights, inputs, scale=True)
    layer(torch.randn(2, 70))
    layer.keep_packed()
    return layer


KINDS = [
    (W8, A8),
    (WeightScheme(IntegerGrid(8, symmetric=False), ROW), TOKEN),
    (WeightScheme(FloatGrid(2, 1), ROW), A8),
    (WeightScheme(IntegerGrid(3, symmetric=False), Granularity("row_group", 32)), None),
    (WeightScheme(IntegerGrid(8), Granularity("column_group", 16)), None),
    (WeightScheme(IntegerGrid(4, symmetric=False), Granularity("row_group", 32)), A8),
    (WeightScheme(IntegerGrid(4, symmetric=False), Granularity("column_group", 16)), TOKEN),
    (WeightScheme(IntegerGrid(5), ROW), A8),
    (WeightScheme(IntegerGrid(7, symmetric=False), ROW), A8),
]


@pytest.mark.parametrize(("weights", "inputs"), KINDS, ids=str)
def test_what_gave_up_its_rows_computes_saves_copies_and_loads_as_before(
    weights: WeightScheme, inputs: InputScheme | None
) -> None:
    layer, x = build(48, 70, weights, inputs, scale=True), torch.randn(3, 70)
    expected, codes, size = layer(x), layer.codes(), layer.weight_bytes()
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    layer.keep_packed()
    assert torch.equal(layer(x), expected)
    assert torch.equal(layer.codes(), codes)
    assert layer.weight_bytes() == size
    assert all(torch.equal(tensor, state[name]) for name, tensor in layer.state_dict().items())
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), layer.to(torch.bfloat16), layer.to("cpu")):
        assert torch.equal(other(x), expected)
    layer.keep_rows()
    assert torch.equal(layer.weight_packed, state["weight_packed"])
    assert torch.equal(layer(x), expected)
    layer.keep_packed()
    layer.load_state_dict(build(48, 70, weights, inputs, scale=True, seed=1).state_dict())
    assert not torch.equal(layer(x), expected)
    layer.load_state_dict(state)
    assert torch.equal(layer(x), expected)


def test_the_weight_lies_in_memory_once() -> None:
    """Without kernels layers keep their rows, and below AVX-512 those whose product is torch's."""
    layer = kept(WeightScheme(IntegerGrid(4), ROW), A8)
    assert (layer.weight_packed.numel() == 0) == (library.available() and takes_integers())


def test_a_changed_part_is_seen_after_the_rows_are_gone() -> None:
    layer, x = kept(W8, A8), torch.randn(3, 70)
    before = layer(x)
    layer.input_step = layer.input_step * 2
    assert not torch.equal(layer(x), before)
    assert_equals_definition(layer, x)
