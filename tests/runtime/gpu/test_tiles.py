"""Tiles keep what the kernels need, and give a GPU enough to do."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from channelwise.numerics.granularity import ROW, Granularity
from channelwise.numerics.grids import FloatGrid, IntegerGrid
from channelwise.runtime.gpu import tiles
from channelwise.runtime.gpu.executions import Integer, WeightOnly
from channelwise.runtime.gpu.tiles import PackedShape, Tiles, candidates, tiles_of_digits, tiles_of_strands
from channelwise.runtime.scheme import InputScheme, WeightScheme
from tests.runtime.gpu.definition import execution_of, layer_of

KINDS = {
    "w8a8-channel": (WeightScheme(IntegerGrid(8), ROW), InputScheme(IntegerGrid(8), "static")),
    "w4a4-fp4": (WeightScheme(FloatGrid(2, 1), ROW), InputScheme(FloatGrid(2, 1), "token")),
    "w3-oc": (WeightScheme(IntegerGrid(3, symmetric=False), Granularity("row_group", 64)), None),
    "w4-ic": (WeightScheme(IntegerGrid(4, symmetric=False), Granularity("column_group", 128)), None),
}
SHAPES = st.builds(
    PackedShape,
    st.integers(1, 40_000),
    st.integers(1, 200),
    st.sampled_from([64, 256, 512]),
    st.sampled_from([32, 192]),
)


def holds(found: Tiles, tokens: int, places: int) -> None:
    """What the kernels and the tensor cores ask of tiles with splits."""
    assert found.splits * found.outputs == 16 * found.warps
    assert all(number & (number - 1) == 0 for number in (found.outputs, found.tokens, found.splits, found.warps))
    assert found.splits * found.tokens * places >= tiles.LEAST_COLUMNS
    assert found.tokens < 2 * tokens
    assert 1 <= found.warps <= 8


@given(SHAPES, st.integers(1, 256), st.sampled_from([2, 4]), st.sampled_from([None, 16, 48, 128]))
def test_of_weight_only_products(shape: PackedShape, tokens: int, places: int, group: int | None) -> None:
    found = tiles_of_digits(tokens, shape, places, group)
    holds(found, tokens, places)
    assert group is None or group % found.outputs == 0


@given(SHAPES, st.integers(1, tiles.FEW_TOKENS))
def test_of_integer_products_of_few_tokens(shape: PackedShape, tokens: int) -> None:
    holds(tiles_of_strands(tokens, shape), tokens, 1)


@pytest.mark.parametrize("tokens", [1, 2, 4, 8, 16, 32, 64])
@pytest.mark.parametrize(("outputs", "columns"), [(4096, 4096), (11008, 4096), (4096, 11008), (8192, 28672)])
def test_every_multiprocessor_has_warps_to_wait_with(outputs: int, columns: int, tokens: int) -> None:
    found = tiles_of_digits(tokens, PackedShape(outputs, -(-columns // 256), 256, 128), 2, None)
    programs = -(-outputs // found.outputs) * -(-tokens // found.tokens)
    assert programs * found.warps >= 4 * tiles.MULTIPROCESSORS


@pytest.mark.parametrize("kind", ["bytes", "strands", "digits"])
def test_candidates_are_all_different(kind: str) -> None:
    found = candidates(kind)
    assert len(set(found)) == len(found) > 10


def test_no_candidates_for_another_kind() -> None:
    with pytest.raises(ValueError, match="bytes, strands and digits"):
        candidates("quarks")


@pytest.mark.parametrize("kind", ["w8a8-channel", "w4a4-fp4", "w3-oc", "w4-ic"])
def test_whatever_tuning_tries_computes_the_same(kind: str) -> None:
    """But for what the order of a sum changes. How far loads run ahead is left out: one number of it stands for all."""
    weights, inputs = KINDS[kind]
    layer = layer_of(70, 600, weights, inputs, bias=True)
    execution = execution_of(layer)
    assert isinstance(execution, Integer | WeightOnly)
    x = torch.randn(3, 600).to(layer.weight_scale.device)
    usual = execution(x)
    for tried in candidates(execution.kind):
        if tried.stages != 4:
            continue
        found = replace(execution, tiles=tried)(x)
        assert bool(((found - usual).abs() <= 1e-5 * (usual.abs() + usual.abs().max())).all()), tried
