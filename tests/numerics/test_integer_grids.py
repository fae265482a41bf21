"""Integer grids of 2 to 8 bits: parameters from ranges, values to codes, codes to values."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from channelwise.numerics.granularity import ROW, TENSOR
from channelwise.numerics.grids import IntegerGrid
from channelwise.numerics.quantizer import (
    SMALLEST_SCALE,
    Parameters,
    decode,
    encode,
    fake_quantize,
    parameters_from_range,
    parameters_of,
)
from tests.numerics.cases import INTEGER_GRIDS, integer_grids, matrices, per_grid, symmetric_grids

# A scaled value is at most 255 and passes through three float32 roundings (scale, division, product),
# each of relative error 2^-24: 255 · 3 · 2^-24 < 5e-5 steps.
HALF_STEP = 0.5 + 5e-5


@pytest.mark.parametrize(
    ("grid", "lowest", "highest"),
    [
        (IntegerGrid(8), -127, 127),
        (IntegerGrid(6), -31, 31),
        (IntegerGrid(4), -7, 7),
        (IntegerGrid(2), -1, 1),
        (IntegerGrid(8, symmetric=False), 0, 255),
        (IntegerGrid(3, symmetric=False), 0, 7),
    ],
)
def test_the_range_of_codes(grid, lowest, highest):
    # methods.md, notation: q_max = 2^(bits-1) − 1; §4: s = (max − min)/(2^b − 1).
    assert (grid.lowest, grid.highest) == (lowest, highest)


@pytest.mark.parametrize("bits", [-1, 0, 1, 9, 16])
def test_widths_outside_two_to_eight_are_refused(bits):
    with pytest.raises(ValueError, match="2 to 8"):
        IntegerGrid(bits)


@pytest.mark.parametrize("grid", INTEGER_GRIDS, ids=str)
@per_grid
@given(exponent=st.integers(-100, 100), fraction=st.floats(1, 2, width=32, exclude_max=True), data=st.data())
def test_every_code_survives_decoding_and_encoding(grid, exponent, fraction, data):
    codes = torch.arange(grid.lowest, grid.highest + 1, dtype=torch.int16).view(1, -1)
    zero_point = None
    if not grid.symmetric:
        zero_point = torch.tensor([[float(data.draw(st.integers(0, grid.highest)))]])
    parameters = Parameters(torch.tensor([[fraction * 2.0**exponent]]), zero_point)
    assert torch.equal(encode(decode(codes, parameters, grid, TENSOR), parameters, grid, TENSOR), codes)


@given(matrices(), integer_grids)
def test_the_error_is_at_most_half_a_step_inside_the_range(x, grid):
    parameters = parameters_of(x, grid, ROW)
    error = (fake_quantize(x, parameters, grid, ROW).double() - x.double()).abs()
    assert (error <= HALF_STEP * parameters.scale.double()).all()


@given(matrices(), integer_grids)
def test_codes_never_fall_as_values_rise(x, grid):
    rising = x.flatten().sort().values.view(1, -1)
    codes = encode(rising, parameters_of(x, grid, TENSOR), grid, TENSOR)
    assert (codes.diff(dim=1) >= 0).all()


@given(matrices(), integer_grids, st.floats(1, 100))
def test_values_beyond_the_range_saturate(x, grid, factor):
    parameters = parameters_of(x, grid, TENSOR)
    low, high = decode(torch.tensor([[grid.lowest, grid.highest]], dtype=torch.int16), parameters, grid, TENSOR)[0]
    step = parameters.scale.item()
    beyond = torch.tensor([[low.item() - factor * step, high.item() + factor * step, -torch.inf, torch.inf]])
    codes = encode(beyond, parameters, grid, TENSOR)
    assert codes.tolist() == [[grid.lowest, grid.highest, grid.lowest, grid.highest]]


@given(matrices(), symmetric_grids)
def test_a_symmetric_grid_is_odd(x, grid):
    parameters = parameters_of(x, grid, ROW)
    assert torch.equal(encode(-x, parameters, grid, ROW), -encode(x, parameters, grid, ROW))


@given(matrices(), symmetric_grids)
def test_the_largest_magnitude_gets_the_largest_code(x, grid):
    codes = encode(x, parameters_of(x, grid, ROW), grid, ROW)
    attained = x.abs().amax(1) >= SMALLEST_SCALE * grid.highest
    assert (codes.abs().amax(1) == grid.highest)[attained].all()


def test_ties_go_to_the_even_code():
    grid, one = IntegerGrid(8), Parameters(torch.ones(1, 1))
    x = torch.tensor([[-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]])
    assert encode(x, one, grid, TENSOR).tolist() == [[-2, -2, 0, 0, 2, 2]]


def test_an_asymmetric_range_is_divided_into_all_its_codes():
    grid = IntegerGrid(4, symmetric=False)
    parameters = parameters_from_range(torch.tensor([[-1.0]]), torch.tensor([[2.0]]), grid)
    torch.testing.assert_close(parameters.scale, torch.tensor([[0.2]]))
    assert parameters.zero_point.item() == 5
    assert encode(torch.tensor([[-1.0, 0.0, 2.0]]), parameters, grid, TENSOR).tolist() == [[0, 5, 15]]


@pytest.mark.parametrize("grid", INTEGER_GRIDS, ids=str)
def test_a_range_of_zero_gives_zeros(grid):
    zeros = torch.zeros(2, 3)
    assert torch.equal(fake_quantize(zeros, parameters_of(zeros, grid, ROW), grid, ROW), zeros)


@pytest.mark.parametrize("grid", INTEGER_GRIDS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype_is_computed_in_float32(grid, dtype):
    x = torch.linspace(-3.0, 5.0, 35).view(5, 7).to(dtype)
    parameters, wide = parameters_of(x, grid, ROW), parameters_of(x.float(), grid, ROW)
    assert torch.equal(parameters.scale, wide.scale)
    assert parameters.scale.dtype == torch.float32
    assert torch.equal(encode(x, parameters, grid, ROW), encode(x.float(), wide, grid, ROW))
    assert fake_quantize(x, parameters, grid, ROW).dtype == torch.float32
