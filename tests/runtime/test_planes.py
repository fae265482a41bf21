"""Products in digits of base 256 are exact, whatever the digits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from channelwise.runtime.planes import PlaneProduct, wide_product
from channelwise.runtime.products import Float64Product
from channelwise.runtime.whole import MAX_PLANES, planes_for

REACH = [127, 127 + 127 * 256, 127 + 127 * 256 + 127 * 256**2]
sizes = st.tuples(st.integers(1, 9), st.integers(2, 40), st.integers(1, 20))


def whole(rows: int, columns: int, largest: int, seed: int) -> torch.Tensor:
    """Whole numbers of all sizes up to ±largest, the extremes among them, int32."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.rand(rows, columns, generator=generator, dtype=torch.float64) * (largest.bit_length() + 1)
    sign = torch.randint(0, 2, (rows, columns), generator=generator) * 2 - 1
    return (torch.exp2(size).clamp(max=largest) * sign).int()


def reference(codes: torch.Tensor, weight: torch.Tensor, zero_point: int = 0) -> torch.Tensor:
    return (codes.long() - zero_point) @ weight.long().t()


@pytest.mark.parametrize("weights", range(MAX_PLANES))
@pytest.mark.parametrize("inputs", range(MAX_PLANES))
@settings(max_examples=25, deadline=None)
@given(sizes=sizes, seed=st.integers(0, 2**20))
def test_sums_are_exact(weights, inputs, sizes, seed):
    rows, columns, outputs = sizes
    weight, codes = whole(outputs, columns, REACH[weights], seed), whole(rows, columns, REACH[inputs], seed + 1).float()
    product = wide_product(weight, REACH[inputs], signed=True)
    if product is None:
        # Float64 itself would not be exact.
        assert REACH[inputs] * int(weight.long().abs().sum(dim=1).max()) >= 2**53
        return
    assert isinstance(product, PlaneProduct)
    assert torch.equal(product.sums(codes, 0), reference(codes, weight))


@settings(max_examples=25, deadline=None)
@given(sizes=sizes, zero_point=st.integers(0, 255), seed=st.integers(0, 2**20))
def test_sums_of_unsigned_codes_are_exact(sizes, zero_point, seed):
    rows, columns, outputs = sizes
    weight, codes = whole(outputs, columns, REACH[1], seed), whole(rows, columns, 255, seed + 1).abs().float()
    product = wide_product(weight, 255, signed=False)
    assert isinstance(product, PlaneProduct)
    assert torch.equal(product.sums(codes, zero_point), reference(codes, weight, zero_point))


@pytest.mark.parametrize(("size", "dtype"), [(2**13, torch.int32), (2**14, torch.float64)])
def test_sums_beyond_int32_are_added_in_float64(size, dtype):
    # 64 · 8192 · 4000 is 0.98 · 2^31.
    weight, codes = torch.full((2, 4000), size, dtype=torch.int32), torch.full((1, 4000), 64.0)
    product = wide_product(weight, 64, signed=True)
    assert product.sum_type == dtype
    assert torch.equal(product.sums(codes, 0), reference(codes, weight))
    assert torch.equal(product.sums(-codes, 0), reference(-codes, weight))


def test_one_input_channel():
    weight, codes = torch.tensor([[8192], [-5]], dtype=torch.int32), torch.tensor([[64.0], [-3.0]])
    assert torch.equal(wide_product(weight, 64, signed=True).sums(codes, 0), reference(codes, weight))


def test_too_many_columns_for_int32_are_still_exact():
    weight, codes = torch.full((2, 70_000), 8192, dtype=torch.int32), torch.full((1, 70_000), -64.0)
    product = wide_product(weight, 64, signed=True)
    assert isinstance(product, Float64Product)
    assert torch.equal(product.sums(codes, 0), reference(codes, weight))


def test_higher_digits_take_only_the_columns_that_have_them():
    weight = whole(12, 64, 100, 0)
    weight[3, 17], weight[5, 40] = 300, -7000
    first, second = wide_product(weight, 64, signed=True).planes
    assert first.columns is None
    assert second.digits.shape == (12, 8)
    assert {17, 40} <= set(second.columns.tolist())


def test_no_tokens_and_a_weight_of_zeros():
    product = wide_product(torch.zeros(3, 5, dtype=torch.int32), 1984, signed=True)
    assert product.sums(torch.zeros(0, 5), 0).shape == (0, 3)
    assert torch.equal(product(torch.ones(2, 5), 0, torch.ones(3), torch.arange(3.0)), torch.arange(3.0).expand(2, 3))


@pytest.mark.parametrize("planes", range(1, MAX_PLANES + 1))
def test_the_reach_of_digits(planes):
    assert planes_for(REACH[planes - 1]) == planes
    assert planes_for(REACH[planes - 1] + 1) == planes + 1
    assert planes_for(0.0) == 1
