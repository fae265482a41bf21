"""The quantizing pass gives the codes of `numerics.inputs`, bit for bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from channelwise.numerics.grids import FloatGrid, IntegerGrid, grid_name
from channelwise.numerics.inputs import static_codes, static_vectors, token_codes
from channelwise.numerics.transform import ChannelTransform
from channelwise.runtime.cpu.library import LEVELS, LIBRARY
from channelwise.runtime.cpu.quantize import static_bytes, static_quantizer, token_bytes

pytestmark = pytest.mark.skipif(not LIBRARY.exists(), reason="the kernels were not built")

GRIDS = [
    *(IntegerGrid(bits, symmetric) for bits in (2, 4, 6, 8) for symmetric in (True, False)),
    *(FloatGrid(e, m) for e, m in ((1, 0), (1, 2), (1, 6), (2, 1), (2, 3), (2, 4), (3, 0))),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BY_GRID = pytest.mark.parametrize("grid", GRIDS, ids=grid_name)


def offset_of(grid) -> int:
    return 128 if grid.lowest < 0 else 0


def inputs_of(tokens: int, channels: int, dtype: torch.dtype) -> torch.Tensor:
    """Ties, numbers far beyond the range, zeros, subnormals, and ordinary ones."""
    x = torch.randn(tokens, channels) * torch.exp2(torch.randint(-3, 6, (1, channels)).float())
    kind = torch.randint(0, 8, (tokens, channels))
    x = torch.where(kind < 3, torch.randint(-300, 300, (tokens, channels)) * 0.125, x)
    x = torch.where(kind == 3, torch.randint(-1, 2, (tokens, channels)) * 2.0**12, x)
    x = torch.where(kind == 4, torch.randint(-1, 2, (tokens, channels)) * 2.0**-24, x)
    return x.to(dtype)


def transforms(channels: int) -> list[ChannelTransform]:
    shift, scale = torch.randn(channels), torch.rand(channels) + 0.1
    return [ChannelTransform(*parts) for parts in ((None, None), (shift, None), (None, scale), (shift, scale))]


@BY_GRID
@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=20)
@given(
    dtype=st.sampled_from(DTYPES),
    tokens=st.integers(1, 5),
    channels=st.one_of(st.integers(1, 80), st.integers(1000, 2100)),
    padding=st.integers(0, 31),
    seed=st.integers(0, 2**20),
)
def test_codes_are_those_of_numerics(grid, level, dtype, tokens, channels, padding, seed):
    torch.manual_seed(seed)
    x, padded = inputs_of(tokens, channels, dtype), channels + padding
    for transform in transforms(channels):
        zero_point = None if grid.lowest else torch.tensor(float(grid.highest // 3))
        vectors = static_vectors(transform, torch.tensor(0.25), zero_point)
        codes, sums = static_bytes(x, static_quantizer(channels, *vectors, grid), padded, level)
        assert_bytes(codes, sums, static_codes(x, *vectors, grid), grid)
        expected, step, zero_points = token_codes(x, transform, grid)
        found = token_bytes(x, transform, grid, padded, level)
        assert_bytes(found.codes, found.code_sums, expected, grid)
        assert torch.equal(found.step, step[:, 0])
        if zero_points is None:
            assert found.zero_point == 128
        else:
            assert torch.equal(found.zero_point.float(), zero_points[:, 0])


def assert_bytes(codes: torch.Tensor, sums: torch.Tensor, expected: torch.Tensor, grid) -> None:
    channels = expected.shape[1]
    assert torch.equal(codes[:, :channels].float(), expected + offset_of(grid))
    assert not bool(codes[:, channels:].any())
    assert torch.equal(sums.long(), codes.long().sum(dim=1))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("grid", [FloatGrid(2, 1), FloatGrid(1, 2), IntegerGrid(4), IntegerGrid(2)], ids=grid_name)
def test_exponents_multiply_codes_by_powers_of_two(level, grid):
    torch.manual_seed(0)
    exponents, x = torch.randint(0, 4, (70,), dtype=torch.uint8), inputs_of(6, 70, torch.bfloat16)
    exponents[:2] = torch.tensor([0, 3])
    vectors = static_vectors(ChannelTransform(), torch.tensor(0.5), None, exponents)
    quantizer = static_quantizer(70, *vectors, grid, exponents)
    codes, _ = static_bytes(x, quantizer, 72, level)
    expected = static_codes(x, *vectors, grid) * torch.exp2(3.0 - exponents.float())
    assert torch.equal(codes[:, :70].float() - 128, expected)


@pytest.mark.parametrize("level", LEVELS)
def test_tokens_of_zeros_and_of_the_smallest_numbers(level):
    x = torch.zeros(3, 20)
    x[1], x[2, 3] = 2.0**-149, -(2.0**-130)
    for grid in GRIDS:
        expected, step, _ = token_codes(x, ChannelTransform(), grid)
        found = token_bytes(x, ChannelTransform(), grid, 32, level)
        assert_bytes(found.codes, found.code_sums, expected, grid)
        assert torch.equal(found.step, step[:, 0])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_may_lie_apart_and_threads_make_no_difference(level, dtype):
    torch.manual_seed(0)
    wide = inputs_of(40, 3000, dtype)
    x, grid = wide[:, 5:2005], IntegerGrid(8)
    expected = token_codes(x, ChannelTransform(), grid)[0]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = token_bytes(x, ChannelTransform(), grid, 2016, level)
        vectors = static_vectors(ChannelTransform(), torch.tensor(0.1), None)
        codes, sums = static_bytes(x, static_quantizer(2000, *vectors, grid), 2016, level)
    finally:
        torch.set_num_threads(threads)
    assert_bytes(found.codes, found.code_sums, expected, grid)
    assert_bytes(codes, sums, static_codes(x, *vectors, grid), grid)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("level", LEVELS)
def test_every_finite_number_of_16_bits_is_read_right(dtype, level):
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).reshape(1, -1)
    x = x[:, x[0].isfinite()]
    multiplier = torch.tensor(2.0**20 if dtype == torch.float16 else 1.0)
    for grid in (IntegerGrid(8), FloatGrid(2, 4)):
        codes, _ = static_bytes(x, static_quantizer(x.shape[1], multiplier, None, grid), x.shape[1], level)
        assert torch.equal(codes.float() - 128, static_codes(x, multiplier, None, grid))


def test_numbers_that_are_none_do_no_harm():
    x = torch.full((2, 40), float("nan"))
    x[0, 1], x[1, 2] = float("inf"), -float("inf")
    for grid in GRIDS:
        vectors = static_vectors(ChannelTransform(), torch.tensor(0.1), None)
        assert static_bytes(x, static_quantizer(40, *vectors, grid), 40)[0].shape == (2, 40)
        assert token_bytes(x, ChannelTransform(), grid, 40).codes.shape == (2, 40)


def test_wrong_arguments_are_refused():
    vectors = static_vectors(ChannelTransform(), torch.tensor(0.1), None)
    quantizer = static_quantizer(8, *vectors, IntegerGrid(8))
    with pytest.raises(ValueError, match=r"x is torch.float64"):
        static_bytes(torch.zeros(2, 8, dtype=torch.float64), quantizer, 8)
    with pytest.raises(ValueError, match="channels next to each other"):
        static_bytes(torch.zeros(8, 2).t(), quantizer, 8)
    with pytest.raises(ValueError, match="do not hold"):
        static_bytes(torch.zeros(2, 8), quantizer, 4)
    with pytest.raises(ValueError, match="codes up to 252"):
        token_bytes(torch.zeros(2, 8), ChannelTransform(), FloatGrid(2, 5), 8)
    with pytest.raises(ValueError, match="codes up to 254"):
        static_quantizer(8, *vectors, IntegerGrid(8), torch.arange(8) // 7)
    with pytest.raises(ValueError, match="shift"):
        token_bytes(torch.zeros(2, 8), ChannelTransform(torch.zeros(7)), IntegerGrid(8), 8)
