"""Integer products are exact sums of whole numbers, at any size and width."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from channelwise.numerics.grids import FloatGrid
from channelwise.runtime.gpu import integer
from channelwise.runtime.gpu.integer import IntegerWeight, integer_product, pack_integer
from channelwise.runtime.gpu.tiles import Tiles
from channelwise.runtime.tables import byte_table

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

KINDS = [(8, 0), (6, 0), (4, 0), (3, 0), (2, 0), (4, 1), (4, 2), (4, 3)]


def weight_of(bits: int, exponent_bits: int, outputs: int, columns: int) -> tuple[IntegerWeight, torch.Tensor]:
    """A random weight, and its values, int64 [outputs, columns]."""
    if bits == 8:
        codes = values = torch.randint(-128, 128, (outputs, columns))
    else:
        codes = torch.randint(0, 15 if exponent_bits else 2**bits, (outputs, columns))
        table = byte_table(FloatGrid(exponent_bits, bits - 1 - exponent_bits)) if exponent_bits else None
        values = codes if table is None else table[codes].long()
    return pack_integer(codes.to(DEVICE), values.to(DEVICE), bits, exponent_bits), values


def codes_of(tokens: int, weight: IntegerWeight) -> torch.Tensor:
    codes = torch.zeros(tokens, weight.padded_columns, dtype=torch.int8)
    codes[:, : weight.columns] = torch.randint(-128, 128, (tokens, weight.columns))
    return codes.to(DEVICE)


@pytest.mark.parametrize(("bits", "exponent_bits"), KINDS)
@settings(max_examples=8)
@given(
    sizes=st.tuples(st.integers(1, 70), st.integers(1, 90), st.integers(1, 300)),
    has_offset=st.booleans(),
    zero_point=st.sampled_from([0, -5, "token"]),
    seed=st.integers(0, 2**20),
)
def test_sums_are_exact(bits, exponent_bits, sizes, has_offset, zero_point, seed) -> None:
    torch.manual_seed(seed)
    tokens, outputs, columns = sizes
    weight, values = weight_of(bits, exponent_bits, outputs, columns)
    codes = codes_of(tokens, weight)
    offset = torch.randint(-9, 9, (outputs,), dtype=torch.int32) if has_offset else None
    zero = torch.randint(-128, 128, (tokens,), dtype=torch.int32) if zero_point == "token" else zero_point
    found = integer_product(
        codes,
        weight,
        zero.to(DEVICE) if isinstance(zero, torch.Tensor) else zero,
        None,
        offset=None if offset is None else offset.to(DEVICE),
        code_sums=codes.sum(dim=1, dtype=torch.int32),
    )
    left = codes[:, :columns].long().cpu() - (zero[:, None].long() if isinstance(zero, torch.Tensor) else zero)
    right = values if offset is None else values - offset[:, None]
    assert torch.equal(found.cpu().long(), left @ right.t())
    assert torch.equal(weight.codes().cpu().long() if bits == 8 else values, values)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sums_are_finished_by_factor_step_and_bias(bits: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, values = weight_of(bits, 0, 50, 200)
    codes = codes_of(7, weight)
    factor, bias, step = torch.rand(50) / 1000, torch.randn(50), torch.rand(7)
    y = integer_product(codes, weight, 0, factor.to(DEVICE), step=step.to(DEVICE), bias=bias.to(DEVICE), dtype=dtype)
    sums = (codes[:, :200].long().cpu() @ values.t()).double()
    expected = sums * factor.double() * step.double()[:, None] + bias.double()
    bound = 4 * 2.0**-24 * (expected.abs() + bias.abs()) + torch.finfo(dtype).eps * expected.abs()
    assert y.dtype == dtype
    assert bool(((y.cpu().double() - expected).abs() <= bound).all())


@pytest.mark.parametrize("bits", [8, 6, 4])
@pytest.mark.parametrize("tiles", [Tiles(16, 16), Tiles(32, 64, 256), Tiles(128, 32), Tiles(64, 128)], ids=str)
def test_tiles_do_not_change_sums(bits: int, tiles: Tiles) -> None:
    torch.manual_seed(1)
    weight, values = weight_of(bits, 0, 70, 256)
    codes = codes_of(35, weight)
    found = integer_product(codes, weight, 0, None, tiles=tiles)
    assert torch.equal(found.cpu().long(), codes[:, :256].long().cpu() @ values.t())


@pytest.mark.parametrize("programs", [1, 2, 5])
def test_programs_that_stay_compute_every_tile(programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    weight, values = weight_of(8, 0, 70, 256)
    codes = codes_of(35, weight)
    monkeypatch.setattr(integer, "MULTIPROCESSORS", programs)
    found = integer_product(codes, weight, 0, None, tiles=Tiles(16, 16, staying=True))
    assert torch.equal(found.cpu().long(), codes[:, :256].long().cpu() @ values.t())


@pytest.mark.parametrize(("bits", "exponent_bits"), [kind for kind in KINDS if kind[0] < 8])
@pytest.mark.parametrize("splits", [2, 4, 8])
def test_columns_divided_among_warps_do_not_change_sums(bits: int, exponent_bits: int, splits: int) -> None:
    """700 columns: for most of these splits some have a block less."""
    torch.manual_seed(2)
    weight, values = weight_of(bits, exponent_bits, 40, 700)
    codes = codes_of(6, weight)
    found = integer_product(codes, weight, 0, None, tiles=Tiles(16, 4, splits=splits, warps=max(1, splits // 2)))
    assert torch.equal(found.cpu().long(), codes[:, :700].long().cpu() @ values.t())


def test_nothing_to_multiply() -> None:
    weight, _ = weight_of(8, 0, 5, 20)
    assert integer_product(codes_of(0, weight), weight, 0, None).shape == (0, 5)


def test_memory_that_is_not_written_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, _ = weight_of(8, 0, 50, 200)
    monkeypatch.setattr(integer, "_multiply_bytes", lambda *arguments: None)
    found = integer_product(codes_of(7, weight), weight, 0, torch.ones(50))
    assert bool(found.isnan().all())
