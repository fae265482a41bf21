"""The assembly says of four bytes what the sentence beside it, which the interpreter takes, says of each."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from channelwise.numerics.floats import lattice_unit
from channelwise.numerics.grids import FloatGrid, grid_name
from channelwise.runtime.gpu.kernels import bits
from tests.runtime.gpu.ptx import run, run_all

words = st.integers(0, 2**32 - 1)


def bytes_of(word: int) -> list[int]:
    return [(word >> (8 * place)) & 0xFF for place in range(4)]


@given(word=words, shift=st.integers(-6, 7), mask=st.integers(0, 255))
def test_cutting_takes_no_bit_of_a_neighbour(word: int, shift: int, mask: int) -> None:
    # What a shift moves in from the next byte has to be outside of the mask, as it is wherever bits are cut.
    mask &= (0xFF >> shift) if shift >= 0 else (0xFF << -shift) & 0xFF
    expected = [((byte >> shift) if shift >= 0 else byte << -shift) & mask for byte in bytes_of(word)]
    assert bytes_of(run(bits._cut.fn(shift, mask), word)) == expected


FOUR_CODES = st.lists(st.integers(0, 14), min_size=4, max_size=4)
GRIDS = [FloatGrid(1, 2), FloatGrid(2, 1), FloatGrid(3, 0)]


@pytest.mark.parametrize("grid", GRIDS, ids=grid_name)
@given(lower=FOUR_CODES, upper=FOUR_CODES)
def test_looking_up_gives_the_lattice_of_the_grid(grid: FloatGrid, lower: list[int], upper: list[int]) -> None:
    word = sum((low | high << 4) << (8 * place) for place, (low, high) in enumerate(zip(lower, upper, strict=True)))
    lattice = torch.cat([-grid.positive_values().flip(0), grid.positive_values()[1:]]) / lattice_unit(grid)
    for codes, found in zip((lower, upper), run_all(_look_up(grid), word, outputs=2), strict=True):
        values = [value - 256 if value > 127 else value for value in bytes_of(found)]
        assert values == [int(lattice[code]) for code in codes]


def _look_up(grid: FloatGrid) -> str:
    return bits._look_up.fn(grid.exponent_bits, grid.mantissa_bits)
