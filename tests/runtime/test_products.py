"""Every product gives the exact integer sums, rounded to float32 once."""

import pytest
import torch

from channelwise.runtime import products
from channelwise.runtime.products import Float64Product, Int8Product, OneDnnProduct, Product, best_product

SATURATES = not products.onednn_is_exact()
"""Whether oneDNN adds in 16 bits here, as it does below AVX-512 VNNI; then nobody takes its product."""

OneDnnHere = pytest.param(OneDnnProduct, marks=pytest.mark.skipif(SATURATES, reason="oneDNN saturates here"))
PRODUCTS = [OneDnnHere, Int8Product, Float64Product, best_product]
SHAPES = [(1, 2, 1), (1, 2, 5), (2, 3, 5), (5, 64, 16), (7, 65, 33), (33, 130, 129), (1, 4096, 40), (0, 8, 8)]


def _prepared(kind: object, weight: torch.Tensor, signed: bool) -> Product:
    prepare = getattr(kind, "prepare", kind)
    product: Product = prepare(weight, signed)
    return product


def _reference(codes: torch.Tensor, weight: torch.Tensor, zero_point: int) -> torch.Tensor:
    return ((codes.long() - zero_point) @ weight.long().t()).float()


@pytest.mark.parametrize("kind", PRODUCTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("signed", [True, False])
def test_sums_are_exact(kind: object, shape: tuple[int, int, int], signed: bool) -> None:
    rows, columns, outputs = shape
    low, high = (-127, 127) if signed else (0, 255)
    generator = torch.Generator().manual_seed(columns)
    weight = torch.randint(-128, 128, (outputs, columns), generator=generator).to(torch.int8)
    codes = torch.randint(low, high + 1, (rows, columns), generator=generator).float()
    product = _prepared(kind, weight, signed)
    for zero_point in (0,) if signed else (0, 3, 128, 255):
        found = product(codes, zero_point, torch.ones(outputs), None)
        assert torch.equal(found, _reference(codes, weight, zero_point))


@pytest.mark.parametrize("kind", PRODUCTS)
@pytest.mark.parametrize("columns", [2, 63, 64, 1000, 11008])
def test_extreme_sums_do_not_saturate(kind: object, columns: int) -> None:
    weight = torch.full((20, columns), 127, dtype=torch.int8)
    weight[1::2] = -127
    for signed, code in ((False, 255.0), (True, 127.0), (True, -127.0)):
        codes = torch.full((3, columns), code)
        found = _prepared(kind, weight, signed)(codes, 0, torch.ones(20), None)
        assert torch.equal(found, _reference(codes, weight, 0))


@pytest.mark.parametrize("kind", PRODUCTS)
def test_factor_and_bias(kind: object) -> None:
    weight = torch.randint(-127, 128, (9, 30)).to(torch.int8)
    codes = torch.randint(-127, 128, (4, 30)).float()
    factor, bias = torch.rand(9), torch.randn(9)
    expected = _reference(codes, weight, 0).double() * factor.double() + bias.double()
    found = _prepared(kind, weight, True)(codes, 0, factor, bias)
    assert torch.allclose(found.double(), expected, rtol=1e-6, atol=1e-2)


def test_too_many_columns_for_int32_are_still_exact() -> None:
    columns = 70_000
    weight = torch.full((2, columns), 127, dtype=torch.int8)
    codes = torch.full((1, columns), 255.0)
    assert torch.equal(best_product(weight, False)(codes, 0, torch.ones(2), None), _reference(codes, weight, 0))


def test_one_column() -> None:
    weight, codes = torch.tensor([[3], [-127]], dtype=torch.int8), torch.tensor([[255.0], [0.0]])
    assert torch.equal(best_product(weight, False)(codes, 1, torch.ones(2), None), _reference(codes, weight, 1))
    with pytest.raises(ValueError, match="two input channels"):
        Int8Product.prepare(weight, False)


def test_a_product_that_saturates_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.full((20, 64), 127, dtype=torch.int8)
    assert isinstance(best_product(weight, True), OneDnnProduct) != SATURATES
    monkeypatch.setattr(products, "onednn_is_exact", lambda: False)
    assert isinstance(best_product(weight, True), Float64Product)
