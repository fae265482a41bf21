"""Floating-point grids, methods.md §3: values, biases, and the integer lattices of §5."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from channelwise.numerics.grids import FloatGrid, bias_for_largest, scale_for_bias
from channelwise.numerics.quantizer import parameters_from_range
from tests.numerics.cases import E1M2, E2M1, E3M0, FLOAT_GRIDS, FOUR_BIT_FLOATS, float_grids


@pytest.mark.parametrize(
    ("grid", "values"),
    [
        # methods.md §3, positive sets at bias 0.
        (E2M1, [0, 1, 2, 3, 4, 6, 8, 12]),
        (E1M2, [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5]),
        (E3M0, [0, 2, 4, 8, 16, 32, 64, 128]),
    ],
)
def test_the_values_at_bias_zero(grid, values):
    assert grid.positive_values().tolist() == values


@pytest.mark.parametrize("grid", FOUR_BIT_FLOATS)
def test_four_bits_have_fifteen_signed_values(grid):
    # methods.md §3.
    assert grid.bits == 4
    assert grid.highest - grid.lowest + 1 == 15


@pytest.mark.parametrize(
    ("grid", "largest", "bias"),
    [
        # methods.md §3: bias at max 1, to the five digits given there; E2M1 with max 6.
        (E2M1, 1.0, 3.58496),
        (E1M2, 1.0, 1.80735),
        (E3M0, 1.0, 7.0),
        (E2M1, 6.0, 1.0),
    ],
)
def test_the_bias_of_a_largest_value(grid, largest, bias):
    found = bias_for_largest(grid, torch.tensor(largest, dtype=torch.float64)).item()
    assert found == pytest.approx(bias, abs=5e-6)


@pytest.mark.parametrize(
    ("grid", "largest"), [(FloatGrid(2, 2), 14), (FloatGrid(2, 3), 15), (FloatGrid(3, 2), 224), (E2M1, 12)]
)
def test_the_largest_value_at_bias_zero(grid, largest):
    # methods.md §3.
    assert grid.largest_value == largest


@pytest.mark.parametrize("grid", FLOAT_GRIDS, ids=str)
def test_values_rise_to_the_largest_with_one_code_each(grid):
    values = grid.positive_values()
    assert len(values) == grid.highest + 1 == 2 ** (grid.bits - 1)
    assert values[0] == 0
    assert (values.diff() > 0).all()
    assert values[-1] == grid.largest_value


@pytest.mark.parametrize("grid", FLOAT_GRIDS, ids=str)
def test_values_are_binades_of_equally_many_steps(grid):
    """(1 + i·2^−m)·2^p for p = 1 … 2^e − 1, and below them multiples of the smallest step, 2^(1 − m)."""
    steps = 2**grid.mantissa_bits
    normal = {(1 + i / steps) * 2.0**p for p in range(1, 2**grid.exponent_bits) for i in range(steps)}
    subnormal = {i * 2.0 ** (1 - grid.mantissa_bits) for i in range(steps)}
    assert set(grid.positive_values().tolist()) == normal | subnormal


@given(float_grids, st.floats(2.0, 2.0**20))
def test_the_largest_value_survives_its_bias(grid, largest):
    bias = bias_for_largest(grid, torch.tensor(largest, dtype=torch.float64))
    # 2^−b̃ is rounded once to float32.
    assert scale_for_bias(bias).item() * grid.largest_value == pytest.approx(largest, rel=2**-23)


@given(float_grids, st.floats(2.0, 2.0**20, width=32))
def test_the_scale_of_a_range_is_that_of_its_bias(grid, largest):
    high = torch.tensor([[largest]])
    scale = parameters_from_range(-high, high, grid).scale
    # Both are rounded to float32, each in its own way.
    torch.testing.assert_close(scale_for_bias(bias_for_largest(grid, high.double())), scale, rtol=2**-22, atol=0)


@given(st.integers(-20 * 2**20, 20 * 2**20), st.integers(-60, 60))
def test_a_bias_lower_by_n_is_a_scale_of_exactly_two_to_the_n_times(numerator, n):
    # methods.md §3; biases in steps of 2^-20, so that b̃ − n is exact too.
    bias = torch.tensor(numerator / 2**20, dtype=torch.float64)
    assert scale_for_bias(bias - n).double() == scale_for_bias(bias).double() * 2.0**n


@given(st.integers(-127, 126))
def test_an_integer_bias_is_an_exact_power_of_two(bias):
    assert scale_for_bias(torch.tensor(float(bias))).item() == 2.0**-bias


@pytest.mark.parametrize(
    ("grid", "factor", "lattice"),
    [
        # methods.md §5.
        (E2M1, 1, [0, 1, 2, 3, 4, 6, 8, 12]),
        (E1M2, 2, list(range(8))),
        (E3M0, 0.5, [0, 1, 2, 4, 8, 16, 32, 64]),
    ],
)
def test_every_four_bit_grid_is_on_a_small_integer_lattice(grid, factor, lattice):
    assert (grid.positive_values() * factor).tolist() == lattice


def test_six_bit_e2m3_is_on_the_lattice_of_quarters():
    # methods.md §5: E2M3 times 4 is 0 … 60.
    lattice = FloatGrid(2, 3).positive_values() * 4
    assert torch.equal(lattice, lattice.round())
    assert lattice.max() == 60


def test_pre_shifted_e2m1_weights_fit_int8():
    # methods.md §5: E2M1 weights times 2^(3 − b_j), b_j = 0 … 3, are at most 96.
    shifted = torch.stack([E2M1.positive_values() * 2.0 ** (3 - b) for b in range(4)])
    assert torch.equal(shifted, shifted.round())
    assert shifted.max() == 96


@pytest.mark.parametrize(("exponent", "mantissa"), [(0, 3), (-1, 4), (2, -1), (1, 7), (8, 0)])
def test_impossible_formats_are_refused(exponent, mantissa):
    with pytest.raises(ValueError, match=r"no grid|2 to 8"):
        FloatGrid(exponent, mantissa)
