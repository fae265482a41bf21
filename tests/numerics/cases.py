"""The grids, matrices and comparisons that the tests of numerics share."""

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from channelwise.numerics.granularity import COLUMN, ROW, TENSOR, Granularity
from channelwise.numerics.grids import FloatGrid, IntegerGrid

SYMMETRIC_GRIDS = [IntegerGrid(bits) for bits in range(2, 9)]
ASYMMETRIC_GRIDS = [IntegerGrid(bits, symmetric=False) for bits in range(2, 9)]
INTEGER_GRIDS = SYMMETRIC_GRIDS + ASYMMETRIC_GRIDS
FLOAT_GRIDS = [FloatGrid(e, bits - 1 - e) for bits in range(2, 9) for e in range(1, bits)]
ALL_GRIDS = INTEGER_GRIDS + FLOAT_GRIDS

E2M1, E1M2, E3M0 = FloatGrid(2, 1), FloatGrid(1, 2), FloatGrid(3, 0)
FOUR_BIT_FLOATS = [E2M1, E1M2, E3M0]

integer_grids = st.sampled_from(INTEGER_GRIDS)
symmetric_grids = st.sampled_from(SYMMETRIC_GRIDS)
asymmetric_grids = st.sampled_from(ASYMMETRIC_GRIDS)
float_grids = st.sampled_from(FLOAT_GRIDS)
all_grids = st.sampled_from(ALL_GRIDS)
granularities = st.sampled_from([TENSOR, ROW, COLUMN]) | st.builds(
    Granularity, st.sampled_from(["row_group", "column_group"]), st.integers(1, 9)
)

per_grid = settings(max_examples=25)
"""For tests that are run for every grid on its own."""

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, max_side=7)


def matrices(largest: float = 2.0**100, shape: st.SearchStrategy | tuple[int, int] = SHAPES) -> st.SearchStrategy:
    """Float32 matrices of any entries up to `largest`; near 2^128 a range itself leaves float32."""
    values = st.floats(-largest, largest, width=32)
    return hnp.arrays("float32", shape, elements=values).map(torch.from_numpy)


def gaussian_matrices(shape: st.SearchStrategy | tuple[int, int] = SHAPES) -> st.SearchStrategy:
    """Normal float32 matrices from a drawn seed: no zero and no ties, so orders of magnitude stay near 1."""
    shapes = st.just(shape) if isinstance(shape, tuple) else shape
    return st.builds(lambda shape, seed: gaussian(*shape, seed=seed), shapes, st.integers(0, 2**31))


def gaussian(*shape: int, seed: int) -> torch.Tensor:
    """Standard normal float32."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_rounds(codes: torch.Tensor, exact: torch.Tensor, tolerance: torch.Tensor | float, grid: IntegerGrid) -> None:
    """`codes` round `exact` (float64, before the clamp) to the grid.

    A value within `tolerance` of a tie may go to either side of it.
    """
    ideal = torch.clamp(torch.round(exact), grid.lowest, grid.highest)
    tie = (exact - torch.floor(exact) - 0.5).abs() <= tolerance
    # Were most values near ties, this would compare nothing.
    assert tie.float().mean() < 0.05
    assert torch.equal(codes.double()[~tie], ideal[~tie])
    assert (codes.double() - ideal)[tie].abs().le(1).all()
