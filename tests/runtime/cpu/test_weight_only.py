"""Weight-only products against float64, at every level of the processor.

Bounds follow from the formats. A product of at most n terms is a float32 sum of exact or once rounded terms of codes
and zero points, so its error is at most (n + 16) · 2^-24 · Σ |x| (|t| + |z|) s. Inputs times scales, for groups down
columns, are kept in two bfloat16 pieces at least: the first leaves less than 2^-7 of them, the second rounds that to
2^-8 of it. With many bfloat16 rows, such weights are rounded to bfloat16 instead, to 2^-8. Rounding the result adds
half a place of its dtype.
"""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from channelwise.numerics.granularity import COLUMN, ROW, TENSOR, Granularity, expand
from channelwise.numerics.grids import FloatGrid, Grid, IntegerGrid
from channelwise.numerics.quantizer import Parameters, decode, encode, parameters_of
from channelwise.runtime.cpu import library
from channelwise.runtime.cpu.weight_only import PairPanels, expand_rows, pack_pairs, weight_only_product
from channelwise.runtime.packing import pack
from channelwise.runtime.tables import code_table

pytestmark = pytest.mark.skipif(not library.available(), reason="the kernels were not built")

LEVELS = library.LEVELS[: library.LEVELS.index(library.level()) + 1] if library.available() else ()

GRIDS: list[Grid] = [IntegerGrid(bits, symmetric) for bits in range(2, 9) for symmetric in (True, False)]
GRIDS += [FloatGrid(1, 2), FloatGrid(2, 1), FloatGrid(3, 0), FloatGrid(2, 3), FloatGrid(3, 2), FloatGrid(2, 2)]

ALONG_ROWS = [ROW, TENSOR, *(Granularity("row_group", size) for size in (32, 64, 128, 256))]
DOWN_COLUMNS = [COLUMN, *(Granularity("column_group", size) for size in (16, 32, 64, 128))]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FEW_ROWS = (1, 2, 3, 5, 16)
MANY_ROWS = (17, 40)
ROWS_FOR_ROUNDED_WEIGHTS = 256
"""From so many bfloat16 rows on, weights of up to 4 bits are rounded to bfloat16."""

BLOCK = 128
"""Columns whose inputs share a power of two, at most."""

HALF_A_PLACE = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
SMALLEST = {torch.float32: 2.0**-149, torch.bfloat16: 2.0**-126, torch.float16: 2.0**-24}


class Weight:
    """A random weight: its panels, its decoded values, and Σ |x| (|t| + |z|) s for inputs x."""

    def __init__(self, rows: int, columns: int, grid: Grid, granularity: Granularity, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        matrix = torch.randn(rows, columns, generator=generator) * torch.rand(rows, 1, generator=generator).exp()
        parameters = parameters_of(matrix + 0.3, grid, granularity)
        codes = encode(matrix, parameters, grid, granularity)
        self.codes = (codes - grid.lowest).to(torch.uint8)
        self.values = decode(codes, parameters, grid, granularity)
        self.granularity = granularity
        self.packed = pack(self.codes, grid.bits)
        self.panels = pack_pairs(
            self.packed, grid.bits, columns, code_table(grid), parameters.scale, parameters.zero_point, granularity
        )
        self.sizes = _sizes(self.codes, parameters, grid, granularity)
        self.scale = expand(parameters.scale, (rows, columns), granularity).double()
        self.bias = torch.randn(rows, generator=generator)

    def check(self, x: torch.Tensor, level: str, dtype: torch.dtype | None = None) -> None:
        """The product is within its bound of float64's."""
        y = weight_only_product(x, self.panels, self.bias, dtype=dtype, level=level)
        exact = x.double() @ self.values.double().t() + self.bias.double()
        assert y.shape == exact.shape and y.dtype == (dtype or x.dtype)
        size = x.double().abs() @ self.sizes.t() + self.bias.double().abs()
        bound = (size * self._relative(x) + self._rounding(x) + SMALLEST[y.dtype]) * (1 + 2 * HALF_A_PLACE[y.dtype])
        bound += exact.abs() * HALF_A_PLACE[y.dtype]
        assert bool(((y.double() - exact).abs() <= bound).all())

    def _relative(self, x: torch.Tensor) -> float:
        relative = (self.panels.columns + 16) * 2.0**-24
        if self.granularity in DOWN_COLUMNS and x.dtype != torch.float32:
            many = x.shape[0] > max(FEW_ROWS) and x.dtype == torch.bfloat16
            relative += 2.0**-8 if many else 2.0**-15
        elif x.dtype == torch.bfloat16 and x.shape[0] >= ROWS_FOR_ROUNDED_WEIGHTS and self.panels.bits <= 4:
            relative += 2.0**-8
        return relative

    def _rounding(self, x: torch.Tensor) -> torch.Tensor:
        """What few rows lose as whole numbers: half of a unit, at most 1.0041 · 2^-15 of the largest input of a block.

        Of float32 inputs it is 2^-23. A block is 128 columns or fewer; down columns, its inputs count their scales.
        """
        if x.shape[0] > max(FEW_ROWS):
            return torch.zeros(())
        unit = 1.0041 * (2.0**-23 if x.dtype == torch.float32 else 2.0**-15)
        inputs, weight = x.double().abs()[:, None], self.sizes
        if self.granularity in DOWN_COLUMNS:
            inputs, weight = inputs * self.scale, self.sizes / self.scale
        blocks = zip(inputs.split(BLOCK, -1), weight.split(BLOCK, -1), strict=True)
        return unit * sum((part.amax(-1) * sizes.sum(-1) for part, sizes in blocks), torch.zeros(()))


def _sizes(codes: torch.Tensor, parameters: Parameters, grid: Grid, granularity: Granularity) -> torch.Tensor:
    """(|t| + |z|) s of every weight, float64, t and z as the kernels centre them."""
    shape = (codes.shape[0], codes.shape[1])
    values = code_table(grid).double()[codes.long()]
    if parameters.zero_point is not None:
        centre = 2 ** (grid.bits - 1)
        zero_point = expand(parameters.zero_point, shape, granularity).double() - centre
        values = (values - centre).abs() + zero_point.abs()
    return values.abs() * expand(parameters.scale, shape, granularity).double()


def _inputs(rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows + columns)
    outliers = 1.0 + 30.0 * (torch.rand(columns, generator=generator) > 0.97)
    return (torch.randn(rows, columns, generator=generator) * outliers).to(dtype)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (16, 32), (19, 77), (40, 131)])
def test_panels_hold_the_checkpoints_codes(grid: Grid, shape: tuple[int, int]) -> None:
    weight = Weight(*shape, grid, ROW)
    assert torch.equal(weight.panels.codes(), weight.codes)


@pytest.mark.parametrize("granularity", ALONG_ROWS + DOWN_COLUMNS, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_expanded_rows_are_the_decoded_weight(grid: Grid, granularity: Granularity) -> None:
    weight = Weight(50, 300, grid, granularity)
    for level in LEVELS:
        assert torch.equal(expand_rows(weight.panels, 0, 50, level=level), weight.values)
        assert torch.equal(expand_rows(weight.panels, 13, 21, level=level), weight.values[13:34])
    assert torch.equal(expand_rows(weight.panels, 3, 4, torch.bfloat16), weight.values[3:7].bfloat16())


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("granularity", ALONG_ROWS + DOWN_COLUMNS, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_products_of_every_grid_and_granularity(grid: Grid, granularity: Granularity, level: str) -> None:
    # The last groups, panels and units are not full.
    weight = Weight(90, 300, grid, granularity)
    for dtype in DTYPES:
        for rows in (1, 3, 17):
            weight.check(_inputs(rows, 300, dtype), level)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("granularity", [ROW, Granularity("row_group", 64), Granularity("column_group", 32)], ids=str)
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_products_of_any_number_of_rows(bits: int, granularity: Granularity, dtype: torch.dtype, level: str) -> None:
    weight = Weight(100, 257, IntegerGrid(bits, False), granularity)
    for rows in (0, *FEW_ROWS, 7, 10, *MANY_ROWS):
        weight.check(_inputs(rows, 257, dtype), level)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (300, 1), (17, 31), (33, 1000), (160, 64)])
@pytest.mark.parametrize("granularity", [ROW, Granularity("row_group", 32), Granularity("column_group", 16)], ids=str)
def test_products_of_odd_shapes(shape: tuple[int, int], granularity: Granularity, level: str) -> None:
    for grid in (IntegerGrid(3, False), IntegerGrid(8), FloatGrid(2, 1)):
        weight = Weight(*shape, grid, granularity)
        for dtype in DTYPES:
            for rows in (1, 4, 20):
                weight.check(_inputs(rows, shape[1], dtype), level)


@settings(max_examples=60, deadline=None)
@given(
    grid=st.sampled_from(GRIDS),
    granularity=st.sampled_from(ALONG_ROWS + DOWN_COLUMNS),
    rows=st.integers(1, 40),
    columns=st.integers(1, 400),
    outputs=st.integers(1, 150),
    dtype=st.sampled_from(DTYPES),
    level=st.sampled_from(LEVELS or ("portable",)),
)
def test_products_of_any_shape(
    grid: Grid, granularity: Granularity, rows: int, columns: int, outputs: int, dtype: torch.dtype, level: str
) -> None:
    Weight(outputs, columns, grid, granularity, seed=rows).check(_inputs(rows, columns, dtype), level)


@pytest.mark.parametrize("level", LEVELS)
def test_many_rows_take_several_passes(level: str) -> None:
    for granularity in (Granularity("row_group", 32), Granularity("column_group", 16)):
        weight = Weight(70, 70, IntegerGrid(4, False), granularity)
        for dtype in DTYPES:
            weight.check(_inputs(531, 70, dtype), level)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_results_come_in_the_dtype_asked_for(dtype: torch.dtype, level: str) -> None:
    weight = Weight(48, 96, IntegerGrid(4), Granularity("row_group", 32))
    for x_dtype in DTYPES:
        for rows in (2, 30):
            weight.check(_inputs(rows, 96, x_dtype), level, dtype)


@pytest.mark.parametrize("level", LEVELS)
def test_threads_do_not_change_the_result(level: str) -> None:
    before = torch.get_num_threads()
    try:
        for granularity in (Granularity("row_group", 32), Granularity("column_group", 48)):
            weight = Weight(200, 100, IntegerGrid(3, False), granularity)
            for rows in (1, 5, 40):
                x, results = _inputs(rows, 100, torch.bfloat16), []
                for threads in (1, 2, 5):
                    torch.set_num_threads(threads)
                    results.append(weight_only_product(x, weight.panels, weight.bias, level=level))
                assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("level", LEVELS)
def test_rows_may_lie_anywhere(level: str) -> None:
    weight = Weight(20, 50, IntegerGrid(4), ROW)
    wide = _inputs(6, 120, torch.bfloat16)
    for x in (wide[:, 7:57], wide[::2, :50], wide[:, ::2][:, :50], wide[:1, :50].expand(6, 50)):
        expected = weight_only_product(x.contiguous(), weight.panels, level=level)
        assert torch.equal(weight_only_product(x, weight.panels, level=level), expected)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_finite_stays_so_and_stays_in_its_row(value: float, level: str) -> None:
    weight = Weight(20, 64, IntegerGrid(4), Granularity("row_group", 32))
    for dtype in DTYPES:
        for rows in (2, 40):
            x = _inputs(rows, 64, dtype)
            expected = weight_only_product(x, weight.panels, level=level)
            x[1, 5] = value
            y = weight_only_product(x, weight.panels, level=level)
            touched = weight.values[:, 5] != 0
            assert not bool(torch.isfinite(y[1, touched]).any())
            assert torch.equal(y[0], expected[0]) and torch.equal(y[2:], expected[2:])


@pytest.mark.parametrize("level", LEVELS)
def test_large_and_small_inputs_keep_their_precision(level: str) -> None:
    weight = Weight(32, 64, IntegerGrid(4), Granularity("row_group", 32))
    for size in (2.0**-60, 2.0**60):
        weight.bias.zero_()
        weight.check(_inputs(3, 64, torch.float32) * size, level)


def test_copies_have_their_own_memory() -> None:
    weight = Weight(20, 50, IntegerGrid(4, False), ROW)
    x = _inputs(2, 50, torch.float32)
    expected = weight_only_product(x, weight.panels)
    for made in (copy.deepcopy(weight.panels), pickle.loads(pickle.dumps(weight.panels))):
        assert made.data.data_ptr() != weight.panels.data.data_ptr()
        assert torch.equal(weight_only_product(x, made), expected)


def test_the_memory_is_near_the_codes_width() -> None:
    for bits in (2, 3, 4, 6, 8):
        panels = Weight(64, 256, IntegerGrid(bits, False), Granularity("row_group", 128)).panels
        assert panels.data.numel() == 64 * 256 * bits // 8
        assert panels.zero_point is not None
        assert (panels.scale.dtype, panels.zero_point.dtype) == (torch.float16, torch.int8)


def _pack(
    bits: int = 4,
    granularity: Granularity = ROW,
    table: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    zero_point: torch.Tensor | None = None,
) -> PairPanels:
    packed = pack(torch.zeros(32, 96, dtype=torch.uint8), bits)
    table = torch.arange(2.0**bits) if table is None else table
    return pack_pairs(packed, bits, 96, table, torch.ones(32, 1) if scale is None else scale, zero_point, granularity)


def test_what_has_no_panels_is_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        _pack(granularity=Granularity("row_group", 48), scale=torch.ones(32, 2))
    with pytest.raises(ValueError, match="multiples of 16"):
        _pack(granularity=Granularity("column_group", 8), scale=torch.ones(4, 96))
    with pytest.raises(ValueError, match="bfloat16"):
        _pack(table=torch.arange(16) / 3)
    with pytest.raises(ValueError, match="8 bits"):
        _pack(bits=8, table=code_table(FloatGrid(4, 3)))
    with pytest.raises(ValueError, match="zero points"):
        _pack(zero_point=torch.full((32, 1), 0.5))
    with pytest.raises(ValueError, match="scale is"):
        _pack(scale=torch.ones(32, 2))
    with pytest.raises(ValueError, match="table"):
        _pack(table=torch.arange(8))
    with pytest.raises(ValueError, match="2 to 8"):
        pack_pairs(torch.zeros(1, 1, dtype=torch.uint8), 1, 8, torch.zeros(2), torch.ones(1, 1), None, ROW)


def test_wrong_inputs_are_refused() -> None:
    panels = _pack()
    with pytest.raises(ValueError, match="x is"):
        weight_only_product(torch.zeros(2, 95), panels)
    with pytest.raises(ValueError, match="float64"):
        weight_only_product(torch.zeros(2, 96, dtype=torch.float64), panels)
    with pytest.raises(ValueError, match="bias"):
        weight_only_product(torch.zeros(2, 96), panels, torch.zeros(31))
    with pytest.raises(ValueError, match="no level"):
        weight_only_product(torch.zeros(2, 96), panels, level="best")
    with pytest.raises(ValueError, match="rows 30"):
        expand_rows(panels, 30, 3)
