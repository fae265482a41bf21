"""Rounding by the exponent's bits is the codes' rounding, for every float32 there is."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from channelwise.numerics.floats import (
    BLOCK,
    float_lattice,
    lattice_codes,
    lattice_unit,
    positive_lattice,
    power_of_two,
)
from channelwise.numerics.granularity import TENSOR
from channelwise.numerics.quantizer import Parameters, encode, fake_quantize
from tests.numerics.cases import E2M1, FLOAT_GRIDS, gaussian, per_grid

ONE = Parameters(torch.ones(1, 1))


def by_codes(x: torch.Tensor, grid) -> torch.Tensor:
    return fake_quantize(x.view(1, -1), ONE, grid, TENSOR).view(x.shape)


def near_values_and_ties(grid) -> torch.Tensor:
    values = grid.positive_values()
    points = torch.cat([values, (values[1:] + values[:-1]) / 2]).float()
    around = [points, torch.nextafter(points, torch.tensor(0.0)), torch.nextafter(points, torch.tensor(torch.inf))]
    return torch.cat([*around, *(-part for part in around)])


@pytest.mark.parametrize("grid", FLOAT_GRIDS, ids=str)
@per_grid
@given(x=hnp.arrays("float32", st.integers(0, 50), elements=st.floats(width=32, allow_nan=False)))
def test_every_float32_is_rounded_as_its_code_is(grid, x):
    x = torch.from_numpy(x)
    assert torch.equal(float_lattice(x, grid), by_codes(x, grid))


@pytest.mark.parametrize("grid", FLOAT_GRIDS, ids=str)
def test_values_and_ties_and_their_neighbours(grid):
    x = torch.cat([near_values_and_ties(grid), torch.tensor([0.0, 2.0**-149, -(2.0**-149), torch.inf, -torch.inf])])
    assert torch.equal(float_lattice(x, grid), by_codes(x, grid))


@pytest.mark.parametrize("grid", FLOAT_GRIDS, ids=str)
def test_the_values_made_on_a_device_are_the_grids(grid):
    assert torch.equal(positive_lattice(grid, torch.device("cpu")), grid.positive_values().float())


@pytest.mark.parametrize("grid", FLOAT_GRIDS, ids=str)
def test_every_value_is_a_whole_multiple_of_the_unit(grid):
    x = near_values_and_ties(grid)
    codes = lattice_codes(x, grid)
    assert lattice_unit(grid) == float(grid.positive_values()[1])
    assert torch.equal(codes, codes.round())
    assert torch.equal(codes.double() * lattice_unit(grid), by_codes(x, grid).double())


@pytest.mark.parametrize("shape", [(0,), (1,), (3, BLOCK), (2, 3, BLOCK // 5)], ids=str)
def test_blocks_make_no_difference(shape):
    x = 4 * gaussian(*shape, seed=0)
    assert torch.equal(float_lattice(x, E2M1), by_codes(x, E2M1))


def test_a_transposed_matrix():
    x = 4 * gaussian(5, 7, seed=0)
    assert torch.equal(float_lattice(x.t(), E2M1), float_lattice(x, E2M1).t())


def test_nan_stays_nan_and_the_input_is_left_alone():
    x = torch.tensor([torch.nan, 5.2])
    found = float_lattice(x, E2M1)
    assert found.isnan().tolist() == [True, False]
    assert x[1] == torch.tensor(5.2)


@given(st.integers(-1022, 1023))
def test_powers_of_two_are_exact(exponent):
    assert power_of_two(torch.tensor(exponent)).item() == 2.0**exponent


def test_codes_count_the_values_of_a_grid_up_to_its_first_doubling():
    # The signed index of a value and its whole multiple are two things: 4 is index 4, 6 is index 5.
    x = torch.tensor([[3.0, 4.0, 6.0, 12.0]])
    assert encode(x, ONE, E2M1, TENSOR).tolist() == [[3, 4, 5, 7]]
    assert lattice_codes(x, E2M1).tolist() == [[3.0, 4.0, 6.0, 12.0]]
