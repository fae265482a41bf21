"""Weight-only products are products with the decoded weight, up to the last digit of inputs as whole numbers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from channelwise.numerics.granularity import ROW, TENSOR, Granularity
from channelwise.numerics.grids import FloatGrid, IntegerGrid
from channelwise.numerics.transform import ChannelTransform
from channelwise.runtime.gpu import weight_only
from channelwise.runtime.gpu.executions import WeightOnly, gpu_execution
from channelwise.runtime.gpu.tiles import Tiles
from channelwise.runtime.scheme import InputScheme, WeightScheme
from tests.runtime.gpu.definition import assert_equals_definition, execution_of, layer_of

GRIDS = [*(IntegerGrid(bits, symmetric) for bits in (2, 3, 4, 6, 8) for symmetric in (True, False)), FloatGrid(2, 1)]
GRANULARITIES = [
    TENSOR,
    ROW,
    Granularity("column"),
    *(Granularity("row_group", size) for size in (32, 64, 128, 256, 1000)),
    *(Granularity("column_group", size) for size in (16, 48, 1000)),
]


@settings(max_examples=25)
@given(
    grid=st.sampled_from(GRIDS),
    granularity=st.sampled_from(GRANULARITIES),
    sizes=st.tuples(st.integers(1, 70), st.integers(1, 600), st.integers(1, 20)),
    has=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 1000),
)
def test_products_are_their_definition(grid, granularity, sizes, has, dtype, seed) -> None:
    rows, columns, tokens = sizes
    layer = layer_of(rows, columns, WeightScheme(grid, granularity), None, *has, seed=seed)
    x = 3 * torch.randn(tokens, columns) * torch.exp2(torch.randint(-8, 8, (1, columns)).float())
    assert_equals_definition(layer, x.to(dtype))


@pytest.mark.parametrize("granularity", [ROW, Granularity("row_group", 64), Granularity("column_group", 32)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_tokens_meet_a_matrix(granularity: Granularity, dtype: torch.dtype) -> None:
    layer = layer_of(70, 300, WeightScheme(IntegerGrid(3, symmetric=False), granularity), None, scale=True)
    x = torch.randn(weight_only.MOST_FUSED + 1, 300).to(dtype)
    assert_equals_definition(layer, x, rounded_weight=dtype != torch.float32)


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_matrix_is_the_decoded_weight(grid, granularity) -> None:
    layer = layer_of(40, 300, WeightScheme(grid, granularity), None)
    execution = execution_of(layer)
    assert isinstance(execution, WeightOnly)
    found = weight_only.weight_matrix(execution.weight, torch.float32)
    assert torch.equal(found, layer.dequantized_weight())


@pytest.mark.parametrize("tiles", [Tiles(16, 8, warps=1), Tiles(32, 16, warps=2), Tiles(64, 32)], ids=str)
def test_tiles_do_not_change_products(tiles: Tiles) -> None:
    layer = layer_of(70, 300, WeightScheme(IntegerGrid(4, symmetric=False), Granularity("row_group", 128)), None)
    execution, x = execution_of(layer), torch.randn(20, 300)
    assert isinstance(execution, WeightOnly)
    place = execution.weight.strands.data.device
    arguments = (x.to(place), execution.weight, execution.bias, ChannelTransform(), torch.float32)
    usual = weight_only.weight_only_product(*arguments)
    assert torch.equal(weight_only.weight_only_product(*arguments, tiles=tiles), usual)


@pytest.mark.parametrize("splits", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("granularity", [ROW, Granularity("row_group", 64), Granularity("column_group", 32)], ids=str)
@pytest.mark.parametrize("bits", [3, 4])
def test_columns_divided_among_warps_give_the_same_up_to_the_order_of_sums(splits, dtype, granularity, bits) -> None:
    """700 columns: for most of these splits some have a block less."""
    layer = layer_of(70, 700, WeightScheme(IntegerGrid(bits, symmetric=False), granularity), None, scale=True)
    tiles = Tiles(16, 2, splits=splits, warps=max(1, splits // 2))
    assert_equals_definition(layer, torch.randn(5, 700).to(dtype), tiles=tiles)


def test_an_input_of_zeros_and_outliers_keeps_its_zeros() -> None:
    layer = layer_of(30, 256, WeightScheme(IntegerGrid(4), ROW), None, bias=False)
    x = torch.zeros(3, 256)
    x[1, 7], x[2, 9] = 1e30, 1e-30
    y = execution_of(layer)(x.to(layer.weight_scale.device)).cpu()
    assert not bool(y[0].any())
    weight = layer.dequantized_weight().cpu()
    for token, channel in ((1, 7), (2, 9)):
        expected = weight[:, channel] * x[token, channel]
        assert bool(((y[token] - expected).abs() <= 2.0**-21 * expected.abs()).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_largest_numbers_of_a_binade_fit_their_digits(dtype: torch.dtype) -> None:
    layer = layer_of(30, 256, WeightScheme(IntegerGrid(4), ROW), None, bias=False)
    x = torch.randn(4, 256)
    x[:, 3] = 4 * (2.0 - torch.finfo(dtype).eps)
    assert_equals_definition(layer, x.to(dtype))


@pytest.mark.parametrize("size", [8, 24, 40, 64, 96])
def test_groups_that_fit_no_strands_have_no_kernel(size: int) -> None:
    weights = WeightScheme(IntegerGrid(4), Granularity("row_group", size))
    layer = layer_of(10, 200, weights, None)
    assert (gpu_execution(layer._parts(), None) is None) == (size != 64)


@settings(max_examples=12)
@given(
    grid=st.sampled_from(GRIDS),
    granularity=st.sampled_from([Granularity("row_group", 32), Granularity("column_group", 16), Granularity("column")]),
    input_grid=st.sampled_from(
        [IntegerGrid(8), IntegerGrid(8, False), IntegerGrid(4), FloatGrid(2, 1), FloatGrid(3, 0)]
    ),
    static=st.booleans(),
    sizes=st.tuples(st.integers(1, 50), st.integers(1, 200), st.sampled_from([1, 2, 17, 300])),
    seed=st.integers(0, 1000),
)
def test_quantized_inputs_with_weights_in_groups(grid, granularity, input_grid, static, sizes, seed) -> None:
    rows, columns, tokens = sizes
    inputs = InputScheme(input_grid, "static" if static else "token")
    layer = layer_of(rows, columns, WeightScheme(grid, granularity), inputs, True, scale=True, seed=seed)
    assert_equals_definition(layer, 3 * torch.randn(tokens, columns))
