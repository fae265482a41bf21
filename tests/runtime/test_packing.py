"""Packing is a bijection of the right size."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from channelwise.runtime.packing import pack, packed_columns, unpack


@settings(max_examples=150, deadline=None)
@given(bits=st.integers(2, 8), rows=st.integers(0, 4), columns=st.integers(0, 41), seed=st.integers(0, 2**31))
def test_round_trip(bits: int, rows: int, columns: int, seed: int) -> None:
    codes = torch.randint(0, 2**bits, (rows, columns), generator=torch.Generator().manual_seed(seed))
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (rows, packed_columns(columns, bits))
    assert torch.equal(unpack(packed, bits, columns).long(), codes)


def test_is_a_little_endian_stream() -> None:
    codes = [5, 1, 7, 2, 0, 6, 3, 4, 7]
    stream = sum(code << (3 * index) for index, code in enumerate(codes))
    expected = list(stream.to_bytes(4, "little"))
    assert pack(torch.tensor([codes]), 3)[0].tolist() == expected


@pytest.mark.parametrize("code", [-1, 16])
def test_refuses_codes_that_do_not_fit(code: int) -> None:
    with pytest.raises(ValueError, match="4 bits"):
        pack(torch.tensor([[code]]), 4)
