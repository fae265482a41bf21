"""The number of threads divides the work and changes no bit of the result."""

from collections.abc import Iterator

import pytest
import torch

from channelwise.numerics.granularity import ROW, Granularity
from channelwise.numerics.grids import IntegerGrid
from channelwise.runtime.cpu import library
from channelwise.runtime.scheme import InputScheme, WeightScheme
from tests.runtime.layers import build

pytestmark = pytest.mark.skipif(not library.available(), reason="the kernels were not built: no C++ compiler")

KINDS = {
    "8 bits, static": (WeightScheme(IntegerGrid(8), ROW), InputScheme(IntegerGrid(8), "static")),
    "4 bits, per token": (
        WeightScheme(IntegerGrid(4, symmetric=False), ROW),
        InputScheme(IntegerGrid(8, symmetric=False), "token"),
    ),
    "3 bits along rows": (WeightScheme(IntegerGrid(3, symmetric=False), Granularity("row_group", 64)), None),
    "4 bits down columns": (WeightScheme(IntegerGrid(4, symmetric=False), Granularity("column_group", 32)), None),
}


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [1, 7, 40, 130])
@pytest.mark.parametrize("size", [(300, 200), (17, 500)])
def test_any_number_of_threads_gives_the_same(kind: str, tokens: int, size: tuple[int, int]) -> None:
    layer, x = build(*size, *KINDS[kind]), torch.randn(tokens, size[1]).bfloat16()
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        layer.keep_rows()
        results.append(layer(x))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
