"""Input codes on floating-point grids stand for what the matrix quantizer of the same scale gives."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from channelwise.numerics.granularity import ROW, TENSOR
from channelwise.numerics.grids import IntegerGrid
from channelwise.numerics.inputs import code_unit, largest_code, static_codes, static_vectors, token_codes
from channelwise.numerics.quantizer import Parameters, fake_quantize, parameters_of
from channelwise.numerics.transform import ChannelTransform
from tests.numerics.cases import E1M2, E2M1, E3M0, FLOAT_GRIDS, INTEGER_GRIDS, gaussian, per_grid

IDENTITY = ChannelTransform()
seeds = st.integers(0, 2**30)
# E7M0's largest value is 2^127, so that only scales near 1 keep its values in float32.
MODERATE = [grid for grid in FLOAT_GRIDS if grid.exponent_bits < 7]


def values(codes: torch.Tensor, step: torch.Tensor, grid) -> torch.Tensor:
    return codes * (step * code_unit(grid))


@pytest.mark.parametrize("grid", FLOAT_GRIDS, ids=str)
@per_grid
@given(seed=seeds, exponent=st.integers(-8, 0))
def test_static_codes_at_a_power_of_two_are_the_matrix_quantizer(grid, seed, exponent):
    x, scale = gaussian(10, 12, seed=seed) * 4, torch.tensor(2.0**exponent)
    codes = static_codes(x, *static_vectors(IDENTITY, scale, None), grid)
    assert torch.equal(codes, codes.round())
    assert torch.equal(values(codes, scale, grid), fake_quantize(x, Parameters(scale.view(1, 1)), grid, TENSOR))


@pytest.mark.parametrize("grid", FLOAT_GRIDS, ids=str)
@per_grid
@given(seed=seeds, scale=st.floats(0.0078125, 1.0, width=32))
def test_static_codes_at_any_scale_differ_at_ties_only(grid, seed, scale):
    x, scale = gaussian(10, 12, seed=seed) * 4, torch.tensor(scale)
    codes = static_codes(x, *static_vectors(IDENTITY, scale, None), grid)
    near = [fake_quantize(x * (1 + e), Parameters(scale.view(1, 1)), grid, TENSOR) for e in (-1e-6, 0.0, 1e-6)]
    found = values(codes, scale, grid)
    assert bool(((found == near[0]) | (found == near[1]) | (found == near[2])).all())
    assert (found == near[1]).float().mean() > 0.95


@pytest.mark.parametrize("grid", FLOAT_GRIDS, ids=str)
@per_grid
@given(seed=seeds)
def test_exponents_are_explicit_powers_per_channel(grid, seed):
    # Scaled once in the multiplier or before it: powers of two make no difference, with a shift or without.
    x, exponents = gaussian(10, 12, seed=seed), torch.arange(12) % 2**grid.exponent_bits
    transform = ChannelTransform(None, torch.rand(12) + 0.5)
    vectors = static_vectors(transform, torch.tensor(0.3), None, exponents.to(torch.uint8))
    moved = x * torch.exp2(exponents.float())
    assert torch.equal(
        static_codes(x, *vectors, grid),
        static_codes(moved, *static_vectors(transform, torch.tensor(0.3), None), grid),
    )


def test_a_shift_is_multiplied_by_the_power_too():
    transform = ChannelTransform(torch.tensor([1.0, -2.0]), None)
    multiplier, offset = static_vectors(transform, torch.tensor(0.5), None, torch.tensor([0, 3], dtype=torch.uint8))
    assert multiplier.tolist() == [2.0, 16.0]
    assert offset.tolist() == [-2.0, 32.0]


@pytest.mark.parametrize("grid", MODERATE, ids=str)
@per_grid
@given(seed=seeds)
def test_token_codes_are_the_matrix_quantizer_per_row(grid, seed):
    x = gaussian(9, 12, seed=seed) * torch.exp(gaussian(9, 1, seed=seed + 1))
    codes, step, zero_point = token_codes(x, IDENTITY, grid)
    assert zero_point is None
    assert torch.equal(codes, codes.round())
    assert torch.equal(codes * step, fake_quantize(x, parameters_of(x, grid, ROW), grid, ROW))


@pytest.mark.parametrize(
    ("grid", "expected"),
    [(E2M1, [0, 1, 2, 3, 4, 6, 8, 12]), (E1M2, list(range(8))), (E3M0, [0, 1, 2, 4, 8, 16, 32, 64])],
    ids=str,
)
def test_the_whole_numbers_of_four_bits(grid, expected):
    # methods.md §5.
    x = torch.linspace(-3 * grid.largest_value, 3 * grid.largest_value, 10001)
    codes = static_codes(x, *static_vectors(IDENTITY, torch.tensor(1.0), None), grid)
    assert sorted({int(code) for code in codes.abs()}) == expected
    assert largest_code(grid) == expected[-1]


@pytest.mark.parametrize("grid", FLOAT_GRIDS, ids=str)
def test_infinities_saturate(grid):
    x = torch.tensor([torch.inf, -torch.inf])
    codes = static_codes(x, *static_vectors(IDENTITY, torch.tensor(0.5), None), grid)
    assert codes.tolist() == [largest_code(grid), -largest_code(grid)]


@pytest.mark.parametrize("grid", [*INTEGER_GRIDS, *FLOAT_GRIDS], ids=str)
def test_zeros_are_zeros_whatever_the_step(grid):
    exponents = None if isinstance(grid, IntegerGrid) else torch.full((3,), 2**grid.exponent_bits - 1)
    for step in (2.0**-126, 1.0, 2.0**127):
        vectors = static_vectors(IDENTITY, torch.tensor(step), None, exponents)
        assert static_codes(torch.zeros(2, 3), *vectors, grid).count_nonzero() == 0
    if isinstance(grid, IntegerGrid):
        return
    codes, step, _ = token_codes(torch.zeros(2, 3), IDENTITY, grid)
    assert codes.count_nonzero() == 0
    assert bool((step > 0).all())
