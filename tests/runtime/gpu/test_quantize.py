"""The quantizing pass gives the codes of `numerics.inputs`, bit for bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from channelwise.numerics.grids import FloatGrid, Grid, IntegerGrid, grid_name
from channelwise.numerics.inputs import static_codes, static_vectors, token_codes
from channelwise.runtime.gpu.quantize import static_bytes, static_vectors_of, token_bytes
from channelwise.runtime.scheme import is_asymmetric
from tests.runtime.cpu.test_quantize import DTYPES, inputs_of, transforms

GRIDS = [
    *(IntegerGrid(bits, symmetric) for bits in (4, 6, 8) for symmetric in (True, False)),
    *(FloatGrid(e, m) for e, m in ((1, 2), (2, 1), (2, 3), (3, 0))),
]
BY_GRID = pytest.mark.parametrize("grid", GRIDS, ids=grid_name)


def centre_of(grid: Grid) -> int:
    return 128 if is_asymmetric(grid) else 0


@BY_GRID
@settings(max_examples=6)
@given(
    dtype=st.sampled_from(DTYPES),
    tokens=st.integers(1, 3),
    channels=st.one_of(st.integers(1, 80), st.integers(1000, 1100)),
    padding=st.integers(0, 31),
    part=st.integers(0, 3),
    seed=st.integers(0, 2**20),
)
def test_codes_are_those_of_numerics(grid, dtype, tokens, channels, padding, part, seed) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(seed)
    x, padded, transform = inputs_of(tokens, channels, dtype).to(device), channels + padding, transforms(channels)[part]
    zero_point = torch.tensor(float(grid.highest // 3)) if is_asymmetric(grid) else None
    multiplier, offset = static_vectors(transform, torch.tensor(0.25), zero_point)
    vectors = static_vectors_of(channels, multiplier.to(device), None if offset is None else offset.to(device), grid)
    codes, sums = static_bytes(x, vectors, grid, padded, sums=True)
    assert_bytes(codes, sums, static_codes(x.cpu(), multiplier, offset, grid), grid)
    expected, step, zero_points = token_codes(x.cpu(), transform, grid)
    found = token_bytes(x, transform, grid, padded, sums=True)
    assert_bytes(found.codes, found.code_sums, expected, grid)
    assert torch.equal(found.step.cpu(), step[:, 0])
    if zero_points is None:
        assert found.zero_point == 0
    else:
        assert torch.equal(found.zero_point.cpu().float(), zero_points[:, 0] - 128)


def assert_bytes(codes: torch.Tensor, sums: torch.Tensor, expected: torch.Tensor, grid: Grid) -> None:
    channels = expected.shape[1]
    assert torch.equal(codes[:, :channels].cpu().float(), expected - centre_of(grid))
    assert not bool(codes[:, channels:].any())
    assert torch.equal(sums.long(), codes.long().sum(dim=1))


@pytest.mark.parametrize("grid", [FloatGrid(2, 1), FloatGrid(1, 2), IntegerGrid(4)], ids=grid_name)
def test_exponents_multiply_codes_by_powers_of_two(grid: Grid, device: torch.device) -> None:
    exponents = torch.randint(0, 4, (50,), generator=torch.Generator().manual_seed(1))
    x = inputs_of(4, 50, torch.float32)
    multiplier, offset = static_vectors(transforms(50)[3], torch.tensor(0.25), None, exponents)
    vectors = static_vectors_of(50, multiplier.to(device), offset.to(device), grid, exponents.to(device))
    codes, _ = static_bytes(x.to(device), vectors, grid, 50, sums=False)
    expected = static_codes(x, multiplier, offset, grid) * torch.exp2((exponents.max() - exponents).float())
    assert torch.equal(codes.cpu().float(), expected)


def test_codes_beyond_a_byte_are_refused() -> None:
    one = torch.ones(())
    with pytest.raises(ValueError, match="do not fit 8 bits"):
        static_vectors_of(4, one, None, FloatGrid(3, 2))
    with pytest.raises(ValueError, match="do not fit 8 bits"):
        static_vectors_of(4, one, None, IntegerGrid(8), torch.tensor([0, 0, 0, 1]))
