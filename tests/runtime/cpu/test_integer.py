"""Integer products are exact, whatever the width, the shape and the level."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from channelwise.runtime.cpu.integer import integer_product, integer_sums, pack_quads
from channelwise.runtime.cpu.library import LEVELS, LIBRARY
from channelwise.runtime.cpu.panels import CONTAINERS, UNIT_COLUMNS, padded_columns
from channelwise.runtime.packing import pack

pytestmark = pytest.mark.skipif(not LIBRARY.exists(), reason="the kernels were not built")

WIDTHS = [8, 7, 6, 5, 4, 3, 2]
SHAPES = [(1, 1), (1, 40), (33, 1), (17, 65), (48, 128), (100, 333), (150, 1100)]
TOKENS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 32, 33, 40, 70]


def weight_of(bits: int, rows: int, columns: int, seed: int = 0):
    """A weight in panels and its values, int64 [rows, columns]; −128 and 127 are among them."""
    torch.manual_seed(seed)
    codes, table = torch.randint(0, 2**bits, (rows, columns)), torch.randint(-128, 128, (2**bits,))
    table[0], table[-1] = -128, 127
    return pack_quads(pack(codes, bits), bits, columns, table), table[codes]


def codes_of(tokens: int, columns: int, bits: int) -> torch.Tensor:
    """Random bytes, many of them 0 or 255, with zeros in the padding."""
    codes = torch.zeros(tokens, padded_columns(bits, columns), dtype=torch.uint8)
    codes[:, :columns] = torch.randint(-64, 320, (tokens, columns)).clamp(0, 255).to(torch.uint8)
    return codes


def sums_of(codes: torch.Tensor, values: torch.Tensor, zero_point=0, offset=0) -> torch.Tensor:
    """Σ_k (u_mk − zero_point_m) · (value_ok − offset_o) in int64."""
    inputs = codes[:, : values.shape[1]].long() - torch.as_tensor(zero_point).long().reshape(-1, 1)
    return inputs @ (values - torch.as_tensor(offset).long().reshape(-1, 1)).t()


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_panels_hold_the_codes(bits, shape):
    torch.manual_seed(0)
    codes, table = torch.randint(0, 2**bits, shape), torch.randint(-128, 128, (2**bits,))
    weight = pack_quads(pack(codes, bits), bits, shape[1], table)
    assert torch.equal(weight.codes().long(), table[codes] if weight.bits == 8 else codes)
    assert torch.equal(weight.column_sums.long(), table[codes].sum(dim=1))


@pytest.mark.parametrize("bits", [bits for bits in WIDTHS if bits == CONTAINERS[bits]])
def test_panels_take_their_width_of_memory(bits):
    weight, _ = weight_of(bits, 64, 256)
    assert weight.data.numel() == 64 * 256 * bits // 8


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_are_exact(level, bits, shape):
    weight, values = weight_of(bits, *shape)
    for tokens in TOKENS:
        codes = codes_of(tokens, shape[1], weight.bits)
        assert torch.equal(integer_sums(codes, weight, 0, level=level).long(), sums_of(codes, values))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("bits", WIDTHS)
def test_sums_over_many_columns_and_rows_are_exact(level, bits):
    weight, values = weight_of(bits, 40, 5000)
    codes = codes_of(1040, 5000, weight.bits)
    rows = slice(0, 130) if level == "portable" else slice(None)
    expected = (codes[rows, :5000].double() @ values.double().t()).long()
    assert torch.equal(integer_sums(codes[rows], weight, 0, level=level).long(), expected)


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=60)
@given(
    bits=st.sampled_from(WIDTHS),
    tokens=st.integers(1, 70),
    rows=st.integers(1, 160),
    columns=st.integers(1, 200),
    per_token=st.booleans(),
    with_offset=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_sums_with_zero_points_and_offsets(level, bits, tokens, rows, columns, per_token, with_offset, seed):
    weight, values = weight_of(bits, rows, columns, seed)
    codes = codes_of(tokens, columns, weight.bits)
    zero_point = torch.randint(0, 256, (tokens,), dtype=torch.int32) if per_token else 128
    offset = torch.randint(-128, 256, (rows,), dtype=torch.int32) if with_offset else None
    code_sums = codes.sum(dim=1, dtype=torch.int32) if with_offset else None
    sums = integer_sums(codes, weight, zero_point, offset=offset, code_sums=code_sums, level=level)
    expected = sums_of(codes, values, zero_point, 0 if offset is None else offset)
    assert torch.equal(sums.long(), expected)


def test_extreme_sums_of_2_to_the_16_columns_are_exact():
    for value in (-128, 127):
        weight = pack_quads(torch.zeros(3, 2**16 // 4, dtype=torch.uint8), 2, 2**16, torch.full((4,), value))
        codes = torch.full((5, 2**16), 255, dtype=torch.uint8)
        for level in LEVELS:
            assert bool((integer_sums(codes, weight, 128, level=level) == 127 * value * 2**16).all())


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [1, 7, 40])
@pytest.mark.parametrize(("with_step", "with_bias"), [(False, False), (True, False), (False, True), (True, True)])
def test_outputs_are_the_sums_rounded_once_times_the_factors(level, dtype, tokens, with_step, with_bias):
    weight, _ = weight_of(4, 150, 70)
    codes, factor = codes_of(tokens, 70, 4), torch.exp2(torch.randint(-36, 8, (150,)).float()) * torch.rand(150)
    step, bias = torch.rand(tokens) if with_step else None, torch.randn(150) if with_bias else None
    expected = integer_sums(codes, weight, 128).float() * factor
    expected = expected if step is None else expected * step[:, None]
    expected = expected if bias is None else expected + bias
    y = integer_product(codes, weight, 128, factor, step=step, bias=bias, dtype=dtype, level=level)
    assert torch.equal(y, expected.to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("level", LEVELS)
def test_narrow_outputs_are_rounded_as_torch_rounds(dtype, level):
    # Sums of one column are the products themselves: all ties, subnormals and overflows of 16 bits come by.
    weight = pack_quads(torch.arange(256, dtype=torch.uint8)[:, None], 8, 1, torch.arange(-128, 128))
    codes = torch.zeros(256, 4, dtype=torch.uint8)
    codes[:, 0] = torch.arange(256)
    for exponent in (-40, -24, -20, -14, 0, 1, 4, 100):
        factor = torch.full((256,), 2.0**exponent)
        exact = integer_sums(codes, weight, 0).float() * factor
        assert torch.equal(integer_product(codes, weight, 0, factor, dtype=dtype, level=level), exact.to(dtype))


def test_two_threads_give_what_one_gives():
    weight, values = weight_of(3, 700, 300)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for level in LEVELS:
            for tokens in (1, 5, 70):
                codes = codes_of(tokens, 300, 3)
                assert torch.equal(integer_sums(codes, weight, 0, level=level).long(), sums_of(codes, values))
    finally:
        torch.set_num_threads(threads)


def test_no_tokens_give_an_empty_result():
    weight, _ = weight_of(4, 20, 16)
    assert integer_sums(torch.empty(0, 16, dtype=torch.uint8), weight, 0).shape == (0, 20)


def test_inputs_are_padded_to_whole_units():
    assert {bits: padded_columns(bits, 1) for bits in UNIT_COLUMNS} == UNIT_COLUMNS
    assert padded_columns(3, 64) == 64
    with pytest.raises(ValueError, match="5 bits"):
        padded_columns(5, 64)


def test_wrong_arguments_are_refused():
    weight, _ = weight_of(4, 20, 30)
    codes, factor = codes_of(3, 30, 4), torch.ones(20)
    with pytest.raises(ValueError, match=r"codes is torch.uint8 \[3, 30\]"):
        integer_sums(codes[:, :30].contiguous(), weight, 0)
    with pytest.raises(ValueError, match="contiguous"):
        integer_sums(codes.t().contiguous().t(), weight, 0)
    with pytest.raises(ValueError, match="zero_point"):
        integer_sums(codes, weight, torch.zeros(2, dtype=torch.int32))
    with pytest.raises(ValueError, match="code_sums"):
        integer_sums(codes, weight, 0, offset=torch.zeros(20, dtype=torch.int32))
    with pytest.raises(ValueError, match="factor"):
        integer_product(codes, weight, 0, factor[:19])
    with pytest.raises(ValueError, match="float64"):
        integer_product(codes, weight, 0, factor, dtype=torch.float64)
    with pytest.raises(ValueError, match="packed"):
        pack_quads(torch.zeros(2, 3, dtype=torch.uint8), 4, 30, torch.zeros(16, dtype=torch.int8))
    with pytest.raises(ValueError, match="one column"):
        pack_quads(torch.zeros(2, 0, dtype=torch.uint8), 4, 0, torch.zeros(16, dtype=torch.int8))
    with pytest.raises(ValueError, match="table of 4 bits"):
        pack_quads(torch.zeros(2, 15, dtype=torch.uint8), 4, 30, torch.zeros(8, dtype=torch.int8))
    with pytest.raises(ValueError, match="−128 … 127"):
        pack_quads(torch.zeros(2, 15, dtype=torch.uint8), 4, 30, torch.full((16,), 128))
