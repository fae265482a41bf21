"""Layers inside compiled code: the kernels stay whole, as operators whose shapes are known."""

import pytest
import torch

from channelwise.numerics.granularity import ROW, Granularity
from channelwise.numerics.grids import FloatGrid, IntegerGrid
from channelwise.runtime.cpu import library
from channelwise.runtime.linear import QuantizedLinear
from channelwise.runtime.scheme import InputScheme, WeightScheme
from tests.runtime.layers import build

pytestmark = pytest.mark.skipif(not library.available(), reason="the kernels were not built: no C++ compiler")

KINDS = {
    "static": (WeightScheme(IntegerGrid(8), ROW), InputScheme(IntegerGrid(8, symmetric=False), "static")),
    "token": (WeightScheme(IntegerGrid(4, symmetric=False), ROW), InputScheme(IntegerGrid(8), "token")),
    "float": (WeightScheme(FloatGrid(2, 1), ROW), InputScheme(FloatGrid(2, 1), "static")),
    "rows": (WeightScheme(IntegerGrid(3, symmetric=False), Granularity("row_group", 32)), None),
    "columns": (WeightScheme(IntegerGrid(4, symmetric=False), Granularity("column_group", 16)), None),
}


@pytest.fixture(autouse=True)
def _compiled_anew() -> None:
    torch._dynamo.reset()


def layer_of(kind: str) -> QuantizedLinear:
    weights, inputs = KINDS[kind]
    layer = build(48, 70, weights, inputs, True, kind != "float", True, exponents=kind == "float")
    layer.keep_packed()
    return layer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_layers_give_what_they_give_uncompiled(kind: str, dtype: torch.dtype) -> None:
    layer = layer_of(kind)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for tokens in (1, 3, 40):
        x = torch.randn(2, tokens, 70).to(dtype)
        assert torch.equal(compiled(x), layer(x))


@pytest.mark.parametrize("kind", KINDS)
def test_the_operators_declare_what_they_do(kind: str) -> None:
    layer, seen = layer_of(kind), []
    execution = layer._prepared[1]
    if not hasattr(execution, "operator"):
        pytest.skip("below AVX-512 products of codes are torch's own operators")
    operator = execution.operator
    object.__setattr__(execution, "operator", lambda *arguments: seen.append(arguments) or operator(*arguments))
    torch.compile(layer, backend="eager")(torch.randn(5, 70))
    torch.library.opcheck(operator, seen[0], test_utils=("test_schema", "test_faketensor"))
