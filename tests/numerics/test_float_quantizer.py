"""Rounding to a floating-point grid, methods.md §3: against the formula of the paper and against brute force."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from channelwise.numerics.granularity import ROW, TENSOR
from channelwise.numerics.grids import IntegerGrid, bias_for_largest, scale_for_bias
from channelwise.numerics.quantizer import Parameters, decode, encode, fake_quantize, parameters_of
from tests.numerics.cases import E1M2, FLOAT_GRIDS, float_grids, matrices, per_grid


def by_the_formula(x: float, grid, bias: int) -> float:
    """methods.md §3: clip to ±Q_max; p = max(1, ⌊log2|x| + b̃⌋); v = 2^(p − m − b̃); v · round(x / v), ties to even."""
    e, m = grid.exponent_bits, grid.mantissa_bits
    q_max = (2 - 2.0**-m) * 2.0 ** (2**e - 1 - bias)
    x = min(q_max, max(-q_max, x))
    p = 1 if x == 0 else max(1, math.floor(math.log2(abs(x)) + bias))
    v = 2.0 ** (p - m - bias)
    return v * round(x / v)


def signed_values(grid) -> torch.Tensor:
    positive = grid.positive_values()
    return torch.cat([-positive.flip(0)[:-1], positive])


@st.composite
def near_the_grid(draw, grid):
    """A float32 within the grid's range and a little beyond, often a value of the grid or a tie between two."""
    values = grid.positive_values().tolist()
    index = draw(st.integers(0, grid.highest))
    above = values[min(index + 1, grid.highest)]
    special = st.sampled_from([values[index], (values[index] + above) / 2])
    anywhere = st.floats(0, 4 * min(grid.largest_value, 2.0**100), width=32)
    return draw(st.sampled_from([-1, 1])) * draw(special | anywhere)


def rounded(x: list[float], grid, bias: int) -> list[float]:
    parameters = Parameters(scale_for_bias(torch.tensor([[float(bias)]])))
    return fake_quantize(torch.tensor([x]), parameters, grid, TENSOR)[0].tolist()


@pytest.mark.parametrize("grid", FLOAT_GRIDS, ids=str)
@per_grid
@given(data=st.data(), bias=st.integers(-8, 8))
def test_rounding_is_the_formula_of_the_paper(grid, data, bias):
    if grid.exponent_bits == 7:
        bias = max(bias, 0)  # Below, the largest values of E7M0 leave float32.
    x = [v * 2.0**-bias for v in data.draw(st.lists(near_the_grid(grid), min_size=1, max_size=8))]
    assert rounded(x, grid, bias) == [by_the_formula(v, grid, bias) for v in x]


@pytest.mark.parametrize("grid", FLOAT_GRIDS, ids=str)
@per_grid
@given(data=st.data())
def test_rounding_is_to_the_nearest_value(grid, data):
    x = data.draw(near_the_grid(grid))
    error = abs(rounded([x], grid, 0)[0] - x)
    # Differences to neighbours are exact in float64: float32 values of one or two binades.
    assert error == (signed_values(grid) - x).abs().min().item()


@pytest.mark.parametrize("grid", FLOAT_GRIDS, ids=str)
def test_ties_go_to_the_even_mantissa(grid):
    values = grid.positive_values().tolist()
    for below, above in pairwise(values):
        spacing = above - below
        # One neighbour is an even multiple of their distance; with m = 0 from 2 on that is always the upper one.
        even = below if (below / spacing) % 2 == 0 else above
        tie = (below + above) / 2
        assert rounded([tie, -tie], grid, 0) == [even, -even]


@given(matrices(), float_grids)
def test_rounding_is_idempotent(x, grid):
    # methods.md §3.
    parameters = parameters_of(x, grid, ROW)
    once = fake_quantize(x, parameters, grid, ROW)
    assert torch.equal(fake_quantize(once, parameters, grid, ROW), once)


@given(matrices(), float_grids)
def test_rounding_is_odd(x, grid):
    # methods.md §3.
    parameters = parameters_of(x, grid, ROW)
    assert torch.equal(encode(-x, parameters, grid, ROW), -encode(x, parameters, grid, ROW))


@given(matrices(), float_grids)
def test_codes_never_fall_as_values_rise(x, grid):
    rising = x.flatten().sort().values.view(1, -1)
    codes = encode(rising, parameters_of(x, grid, TENSOR), grid, TENSOR)
    assert (codes.diff(dim=1) >= 0).all()


@given(matrices(largest=8.0), float_grids, st.floats(2.0, 32.0), st.integers(-12, 12))
def test_scaling_by_a_power_of_two_with_the_bias_lower_is_exact(x, grid, largest, n):
    # methods.md §3: 2^n·x at b̃ − n has the codes of x at b̃, and 2^n times its value.
    if grid.exponent_bits == 7:
        n = abs(n)  # Below, the scale of E7M0 is subnormal, and rounded for it.
    bias = bias_for_largest(grid, torch.tensor([[largest]], dtype=torch.float64))
    bias = torch.round(bias * 2**20) / 2**20  # So that b̃ − n is exact.
    before, after = Parameters(scale_for_bias(bias)), Parameters(scale_for_bias(bias - n))
    codes, moved = encode(x, before, grid, TENSOR), encode(x * 2.0**n, after, grid, TENSOR)
    assert torch.equal(codes, moved)
    assert torch.equal(decode(codes, before, grid, TENSOR) * 2.0**n, decode(moved, after, grid, TENSOR))


@pytest.mark.parametrize("grid", FLOAT_GRIDS, ids=str)
@per_grid
@given(largest=st.floats(2.0**-10, 2.0**10, width=32))
def test_every_code_survives_decoding_and_encoding(grid, largest):
    codes = torch.arange(grid.lowest, grid.highest + 1, dtype=torch.int16).view(1, -1)
    parameters = parameters_of(torch.tensor([[largest]]), grid, TENSOR)
    assert torch.equal(encode(decode(codes, parameters, grid, TENSOR), parameters, grid, TENSOR), codes)


@given(matrices())
def test_e1m2_is_int4_up_to_scale(x):
    # methods.md §3: seven equal steps, so the same codes, and bit-identical values. Above the scale's floor only.
    x = torch.where(x.abs() < 2.0**-100, 0.0, x)
    float_parameters, integer_parameters = parameters_of(x, E1M2, ROW), parameters_of(x, IntegerGrid(4), ROW)
    float_codes = encode(x, float_parameters, E1M2, ROW)
    assert torch.equal(float_codes, encode(x, integer_parameters, IntegerGrid(4), ROW))
    values = decode(float_codes, float_parameters, E1M2, ROW)
    assert torch.equal(values, decode(float_codes, integer_parameters, IntegerGrid(4), ROW))


@given(float_grids, st.floats(1.0, 100.0))
def test_values_beyond_the_range_saturate(grid, factor):
    beyond = min(grid.largest_value * factor, 2.0**127)
    x = torch.tensor([[beyond, -beyond, torch.inf, -torch.inf]])
    codes = encode(x, Parameters(torch.ones(1, 1)), grid, TENSOR)
    assert codes.tolist() == [[grid.highest, grid.lowest, grid.highest, grid.lowest]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("grid", FLOAT_GRIDS, ids=str)
def test_every_dtype_is_computed_in_float32(grid, dtype):
    x = torch.linspace(-3.0, 5.0, 35).view(5, 7).to(dtype)
    parameters = parameters_of(x, grid, ROW)
    assert torch.equal(parameters.scale, parameters_of(x.float(), grid, ROW).scale)
    assert torch.equal(encode(x, parameters, grid, ROW), encode(x.float(), parameters, grid, ROW))
