"""Static input quantizers: round(x · multiplier + offset) is the explicit (x − shift)/scale, divided by the step."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from channelwise.numerics.granularity import TENSOR
from channelwise.numerics.grids import IntegerGrid
from channelwise.numerics.inputs import static_codes, static_vectors
from channelwise.numerics.quantizer import Parameters, encode, parameters_of
from channelwise.numerics.transform import ChannelTransform
from tests.numerics.cases import INTEGER_GRIDS, SYMMETRIC_GRIDS, assert_rounds, gaussian, per_grid

seeds = st.integers(0, 2**30)


def random_transform(seed: int, shifted: bool, scaled: bool) -> ChannelTransform:
    shift = 5 * gaussian(40, seed=seed) if shifted else None
    scale = torch.exp(gaussian(40, seed=seed + 1)) if scaled else None
    return ChannelTransform(shift, scale)


@pytest.mark.parametrize("grid", INTEGER_GRIDS, ids=str)
@per_grid
@given(seed=seeds, shifted=st.booleans(), scaled=st.booleans())
def test_two_vectors_hold_transform_step_and_zero_point(grid, seed, shifted, scaled):
    x = 4 * gaussian(30, 40, seed=seed) + 1
    transform = random_transform(seed + 1, shifted, scaled)
    parameters = parameters_of(transform.apply(x), grid, TENSOR)
    step = parameters.scale.view(())
    zero_point = None if parameters.zero_point is None else parameters.zero_point.view(())
    codes = static_codes(x, *static_vectors(transform, step, zero_point), grid)
    exact = transform.apply(x.double()) / step.double() + (0 if zero_point is None else zero_point.double())
    # Product, sum and both vectors are rounded once each, by 2^-25 of sizes that are below 2^10 steps here.
    assert_rounds(codes, exact, 4 * 2.0**-15, grid)


@given(seeds, st.integers(-8, 8))
def test_with_a_power_of_two_step_the_codes_are_those_of_the_matrix_quantizer(seed, exponent):
    grid, x = IntegerGrid(8), gaussian(10, 12, seed=seed) * 2.0**exponent
    step = torch.tensor(2.0 ** (exponent - 5))
    codes = static_codes(x, *static_vectors(ChannelTransform(), step, None), grid)
    assert torch.equal(codes, encode(x, Parameters(step.view(1, 1)), grid, TENSOR).float())


@pytest.mark.parametrize("grid", INTEGER_GRIDS, ids=str)
@per_grid
@given(seed=seeds, factor=st.floats(1.5, 1e6))
def test_out_of_range_input_saturates(grid, seed, factor):
    # methods.md §1: the released code does not clamp, codes leave the range on unseen data.
    calibration = gaussian(20, 6, seed=seed)
    parameters = parameters_of(calibration, grid, TENSOR)
    zero_point = None if parameters.zero_point is None else parameters.zero_point.view(())
    vectors = static_vectors(ChannelTransform(), parameters.scale.view(()), zero_point)
    extreme = factor * calibration.abs().max() * torch.tensor([[1.0, -1.0, torch.inf, -torch.inf]])
    codes = static_codes(extreme, *vectors, grid)
    assert codes.tolist() == [[grid.highest, grid.lowest, grid.highest, grid.lowest]]


@pytest.mark.parametrize("grid", SYMMETRIC_GRIDS, ids=str)
def test_nothing_is_added_where_there_is_neither_shift_nor_zero_point(grid):
    multiplier, offset = static_vectors(ChannelTransform(), torch.tensor(0.25), None)
    assert offset is None
    assert multiplier.shape == ()
    assert multiplier.item() == 4.0


def test_a_zero_point_without_a_shift_is_one_number():
    multiplier, offset = static_vectors(ChannelTransform(), torch.tensor(0.25), torch.tensor(3.0))
    assert (multiplier.item(), offset.item()) == (4.0, 3.0)
    assert offset.shape == ()


def test_shift_and_scale_make_vectors():
    transform = ChannelTransform(torch.tensor([1.0, -2.0]), torch.tensor([2.0, 4.0]))
    multiplier, offset = static_vectors(transform, torch.tensor(0.5), torch.tensor(3.0))
    assert multiplier.tolist() == [1.0, 0.5]
    assert offset.tolist() == [2.0, 4.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype_is_computed_in_float32(dtype):
    x = gaussian(5, 40, seed=0).to(dtype)
    vectors = static_vectors(random_transform(1, True, True), torch.tensor(0.02), None)
    codes = static_codes(x, *vectors, IntegerGrid(8))
    assert codes.dtype == torch.float32
    assert torch.equal(codes, static_codes(x.float(), *vectors, IntegerGrid(8)))


def test_the_input_itself_is_left_alone():
    x = gaussian(3, 4, seed=0)
    before = x.clone()
    static_codes(x, torch.tensor(1.0), None, IntegerGrid(8))
    assert torch.equal(x, before)


def test_leading_dimensions_are_kept():
    x = gaussian(2, 3, 40, seed=0)
    vectors = static_vectors(random_transform(1, True, True), torch.tensor(0.05), None)
    codes = static_codes(x, *vectors, IntegerGrid(8))
    assert codes.shape == x.shape
    assert torch.equal(codes[1], static_codes(x[1], *vectors, IntegerGrid(8)))
