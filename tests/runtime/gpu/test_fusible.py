"""Codes and digits of inputs in torch's own operations are those of the kernels, bit for bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from channelwise.numerics.granularity import ROW, Granularity
from channelwise.numerics.grids import FloatGrid, Grid, IntegerGrid
from channelwise.numerics.inputs import static_vectors
from channelwise.numerics.transform import ChannelTransform
from channelwise.runtime.gpu import fusible
from channelwise.runtime.gpu.executions import WeightOnly
from channelwise.runtime.gpu.quantize import static_bytes, static_vectors_of, token_bytes
from channelwise.runtime.gpu.weight_only import input_digits
from channelwise.runtime.scheme import WeightScheme
from tests.runtime.gpu.definition import execution_of, layer_of

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GRIDS = st.sampled_from(
    [IntegerGrid(8), IntegerGrid(8, False), IntegerGrid(6), IntegerGrid(4, False), FloatGrid(2, 1), FloatGrid(3, 0)]
)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
SIZES = st.tuples(st.integers(1, 20), st.integers(1, 300))


def inputs_of(sizes: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    x = torch.randn(sizes) * torch.exp2(torch.randint(-8, 4, (1, sizes[1])).float())
    return x.to(dtype).to(DEVICE)


def transform_of(columns: int, has: tuple[bool, bool]) -> ChannelTransform:
    shift, scale = torch.randn(columns, device=DEVICE), 0.5 + torch.rand(columns, device=DEVICE)
    return ChannelTransform(shift if has[0] else None, scale if has[1] else None)


HAS = st.tuples(st.booleans(), st.booleans())


@given(grid=GRIDS, sizes=SIZES, dtype=DTYPES, has=HAS, exponents=st.booleans(), sums=st.booleans(), seed=st.integers(0))
def test_static_codes(
    grid: Grid,
    sizes: tuple[int, int],
    dtype: torch.dtype,
    has: tuple[bool, bool],
    exponents: bool,
    sums: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed % 2**32)
    columns, zero = sizes[1], None if isinstance(grid, FloatGrid) or grid.symmetric else torch.tensor(3.0)
    powers = torch.randint(0, 2, (columns,), device=DEVICE) if exponents and grid == FloatGrid(2, 1) else None
    step = torch.tensor(0.01, device=DEVICE)
    vectors = static_vectors(transform_of(columns, has), step, zero if zero is None else zero.to(DEVICE), powers)
    kept, x = static_vectors_of(columns, *vectors, grid, powers), inputs_of(sizes, dtype)
    codes, code_sums = static_bytes(x, kept, grid, 384, sums=sums)
    found = fusible.static_bytes(x, kept, grid, 384, -5, sums=sums)
    assert torch.equal(found.codes, codes)
    assert (found.step, found.zero_point) == (None, -5)
    assert (found.code_sums is None and code_sums is None) or torch.equal(found.code_sums, code_sums)


@given(grid=GRIDS, sizes=SIZES, dtype=DTYPES, has=HAS, seed=st.integers(0, 2**32 - 1))
def test_codes_with_a_step_per_token(
    grid: Grid, sizes: tuple[int, int], dtype: torch.dtype, has: tuple[bool, bool], seed: int
) -> None:
    torch.manual_seed(seed)
    transform, x = transform_of(sizes[1], has), inputs_of(sizes, dtype)
    expected = token_bytes(x, transform, grid, 384, sums=True)
    found = fusible.token_bytes(x, transform, grid, 384, sums=True)
    for name in ("codes", "code_sums", "step"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert torch.equal(torch.as_tensor(found.zero_point), torch.as_tensor(expected.zero_point))


@settings(max_examples=30)
@given(
    columns=st.integers(1, 700), dtype=DTYPES, has=HAS, bits=st.sampled_from([3, 4, 8]),
    granularity=st.sampled_from([ROW, Granularity("row_group", 64)]), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
@pytest.mark.parametrize("count", [2, 3])
def test_digits(
    count: int, columns: int, dtype: torch.dtype, has, bits: int, granularity: Granularity, seed: int
) -> None:
    torch.manual_seed(seed)
    execution = execution_of(layer_of(16, columns, WeightScheme(IntegerGrid(bits), granularity), None))
    assert isinstance(execution, WeightOnly)
    transform, x = transform_of(columns, has), inputs_of((5, columns), dtype)
    # The largest of a binade that 16 bits hold: with the step of the others its number would not fit the digits.
    x[2], x[3, 0], x[4] = 0.0, 32_640.0, 32_640.0
    expected = input_digits(x, execution.weight, transform, count)
    found = fusible.input_digits(x, execution.weight, transform, count)
    assert (found.tokens, found.x, found.count) == (expected.tokens, expected.x, expected.count)
    for name in ("digits", "step"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert found.weighed.dtype == expected.weighed.dtype
    # Of three digits they are sums in float32 of numbers up to 2^22, each in its own order: two times at most as
    # many roundings as there are numbers, each of the sum of magnitudes.
    span = execution.weight.span
    rounding = 0 if count == 2 else 2 * span * 2.0**-24 * span * 2**22
    assert bool(((found.weighed.double() - expected.weighed.double()).abs() <= rounding).all())
