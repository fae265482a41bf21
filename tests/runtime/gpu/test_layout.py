"""Strands hold every code once, in as many bits as it has."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from channelwise.runtime.gpu.layout import STRANDS, pack_strands

BITS = pytest.mark.parametrize("bits", STRANDS)


@BITS
@given(
    outputs=st.integers(1, 40), columns=st.integers(1, 600), width=st.sampled_from([32, 64]), seed=st.integers(0, 99)
)
def test_unpacking_undoes_packing(bits: int, outputs: int, columns: int, width: int, seed: int) -> None:
    codes = _codes(bits, outputs, columns, seed)
    strands = pack_strands(codes, bits, width)
    assert strands.padded_columns % strands.block == 0
    assert torch.equal(strands.codes(), codes)


@BITS
def test_a_whole_block_takes_no_more_than_its_bits(bits: int) -> None:
    strands = pack_strands(_codes(bits, 32, 512, 0), bits, 32)
    assert strands.data.numel() * 8 == 32 * 512 * bits


def test_the_layout_of_three_bits() -> None:
    codes = torch.zeros(1, 256, dtype=torch.int16)
    codes[0, 6 * 32], codes[0, 7 * 32] = 0b101, 0b011
    first, second, third = pack_strands(codes, 3, 32).data[0, 0, :, 0, 0].tolist()
    assert (first >> 6, second >> 6, third >> 6) == (0b01, 0b11, 0b01)


@pytest.mark.parametrize(("bits", "code"), [(4, 16), (4, -1), (8, 128), (3, 8)])
def test_codes_that_do_not_fit_are_refused(bits: int, code: int) -> None:
    with pytest.raises(ValueError, match="do not lie in strands"):
        pack_strands(torch.full((2, 2), code, dtype=torch.int16), bits, 32)
    with pytest.raises(ValueError, match="5 bits"):
        pack_strands(torch.zeros(2, 2, dtype=torch.int16), 5, 32)


def _codes(bits: int, outputs: int, columns: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    low, high = (-128, 128) if bits == 8 else (0, 2**bits)
    return torch.randint(low, high, (outputs, columns), generator=generator, dtype=torch.int16)
