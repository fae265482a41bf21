"""Input quantizers with one step per token, found from the token itself."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from channelwise.numerics.granularity import ROW
from channelwise.numerics.grids import IntegerGrid
from channelwise.numerics.inputs import token_codes
from channelwise.numerics.quantizer import encode, parameters_of
from channelwise.numerics.transform import ChannelTransform
from tests.numerics.cases import INTEGER_GRIDS, gaussian, integer_grids, matrices

IDENTITY = ChannelTransform()


def values(codes: torch.Tensor, step: torch.Tensor, zero_point: torch.Tensor | None) -> torch.Tensor:
    """What the codes stand for, float64."""
    return (codes.double() - (0 if zero_point is None else zero_point.double())) * step.double()


@given(matrices(), integer_grids)
def test_a_token_is_a_row_of_the_matrix_quantizer(x, grid):
    codes, step, zero_point = token_codes(x, IDENTITY, grid)
    parameters = parameters_of(x, grid, ROW)
    assert torch.equal(step, parameters.scale)
    assert (zero_point is None) == grid.symmetric
    if zero_point is not None:
        assert torch.equal(zero_point, parameters.zero_point)
    assert torch.equal(codes, encode(x, parameters, grid, ROW).float())


@given(matrices(), integer_grids)
def test_the_error_is_at_most_half_a_step(x, grid):
    codes, step, zero_point = token_codes(x, IDENTITY, grid)
    error = (values(codes, step, zero_point) - x.double()).abs()
    # Scaled values are at most 255 and rounded twice to float32: 255 · 2 · 2^-24 < 4e-5.
    assert (error <= (0.5 + 4e-5) * step.double()).all()


@given(matrices(largest=2.0**60), integer_grids, st.integers(-40, 40))
def test_scaling_a_token_by_a_power_of_two_changes_its_step_alone(x, grid, exponent):
    x = torch.where(x.abs() < 2.0**-60, 0.0, x)  # So that no step meets its floor, 2^-126, after the scaling.
    codes, step, zero_point = token_codes(x, IDENTITY, grid)
    scaled_codes, scaled_step, scaled_zero_point = token_codes(x * 2.0**exponent, IDENTITY, grid)
    assert torch.equal(codes, scaled_codes)
    present = x.abs().amax(1) > 0
    assert torch.equal((step * 2.0**exponent)[present], scaled_step[present])
    if zero_point is not None:
        assert torch.equal(zero_point, scaled_zero_point)


@given(matrices(), integer_grids)
def test_a_tokens_codes_do_not_depend_on_the_other_tokens(x, grid):
    together, _, _ = token_codes(x, IDENTITY, grid)
    alone = torch.cat([token_codes(token.view(1, -1), IDENTITY, grid)[0] for token in x])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("grid", INTEGER_GRIDS, ids=str)
def test_a_zero_token_stands_for_zeros(grid):
    codes, step, zero_point = token_codes(torch.zeros(2, 5), IDENTITY, grid)
    assert (step > 0).all()
    assert torch.equal(values(codes, step, zero_point), torch.zeros(2, 5, dtype=torch.float64))


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_an_asymmetric_token_of_one_sign_keeps_zero_and_its_size(bits, sign):
    grid = IntegerGrid(bits, symmetric=False)
    x = sign * torch.tensor([[9.0, 9.5, 10.0]])
    codes, step, zero_point = token_codes(x, IDENTITY, grid)
    assert zero_point.item() == (0 if sign > 0 else grid.highest)
    assert step.item() == pytest.approx(10 / grid.highest, rel=1e-6)
    # 4e-5 as above.
    assert ((values(codes, step, zero_point) - x.double()).abs() <= (0.5 + 4e-5) * step.double()).all()


@given(st.integers(0, 2**30), integer_grids)
def test_the_transform_comes_first(seed, grid):
    x = gaussian(4, 6, seed=seed)
    transform = ChannelTransform(gaussian(6, seed=seed + 1), torch.exp(gaussian(6, seed=seed + 2)))
    found, expected = token_codes(x, transform, grid), token_codes(transform.apply(x), IDENTITY, grid)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("grid", [IntegerGrid(8), IntegerGrid(8, symmetric=False)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_codes_and_steps_are_float32_whatever_comes_in(grid, dtype):
    x = gaussian(4, 6, seed=0).to(dtype)
    for transform in [IDENTITY, ChannelTransform(torch.ones(6, dtype=dtype), torch.full((6,), 2.0, dtype=dtype))]:
        parts = token_codes(x, transform, grid)
        assert {part.dtype for part in parts if part is not None} == {torch.float32}
        assert torch.equal(parts[0], token_codes(x.float(), transform, grid)[0])


def test_leading_dimensions_are_kept():
    x = gaussian(2, 3, 5, seed=0)
    codes, step, _ = token_codes(x, IDENTITY, IntegerGrid(8))
    assert codes.shape == (2, 3, 5)
    assert step.shape == (2, 3, 1)
    assert torch.equal(codes[1], token_codes(x[1], IDENTITY, IntegerGrid(8))[0])


def test_the_input_itself_is_left_alone():
    for grid in [IntegerGrid(8), IntegerGrid(8, symmetric=False)]:
        x = gaussian(3, 4, seed=0)
        before = x.clone()
        token_codes(x, IDENTITY, grid)
        assert torch.equal(x, before)
