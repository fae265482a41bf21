"""The Hessian of a layer's output error (methods.md §4; GPTQ, arXiv 2210.17323)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from channelwise.methods.hessian import BLOCK, ROWS, Hessian, HessianBuilder, output_error, row_errors
from channelwise.numerics.transform import ChannelTransform

ROUNDING = 2.0**-24
"""Half the distance between 1 and the next float32: the share that rounding to float32 may change."""


def exact(x: torch.Tensor) -> torch.Tensor:
    return x.double().t() @ x.double()


def hessian_of(x: torch.Tensor) -> Hessian:
    """From sums in float64: the only error is that of rounding the matrix to float32."""
    return Hessian(exact(x).float(), x.double().sum(dim=0), len(x))


def offset_inputs(seed: int, tokens: int = 40, channels: int = 7) -> torch.Tensor:
    """Float64 [tokens, channels]; centres up to hundreds of times the spread."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.exp(torch.randn(channels, generator=generator, dtype=torch.float64))
    centers = spread * 10.0 ** (3 * torch.rand(channels, generator=generator, dtype=torch.float64))
    return torch.randn(tokens, channels, generator=generator, dtype=torch.float64) * spread + centers


def random_transform(x: torch.Tensor, seed: int) -> ChannelTransform:
    generator = torch.Generator().manual_seed(seed + 1)
    scale = torch.exp(2 * torch.randn(x.shape[1], generator=generator))
    return ChannelTransform((x.amax(dim=0) + x.amin(dim=0)).float() / 2, scale)


def whole_numbers(*shape: int) -> torch.Tensor:
    return torch.randint(-50, 51, shape, generator=torch.Generator().manual_seed(0)).float()


@given(st.integers(0, 1000), st.booleans(), st.booleans())
def test_transformed_is_the_hessian_of_transformed_inputs(seed: int, shifted: bool, scaled: bool) -> None:
    x = offset_inputs(seed)
    both = random_transform(x, seed)
    transform = ChannelTransform(both.shift if shifted else None, both.scale if scaled else None)
    found, moved = hessian_of(x).transform_(transform), transform.apply(x)
    # The matrix was rounded once to float32 before the scale and once after it.
    scale = torch.ones(x.shape[1], dtype=torch.float64) if transform.scale is None else transform.scale.double()
    given_error = exact(x).abs() / (scale * scale[:, None])
    bound = 1.01 * ROUNDING * (given_error + exact(moved).abs())
    assert found.matrix.dtype == torch.float32
    assert bool((((found.matrix.double() - exact(moved)).abs() - bound).triu() <= 0).all())
    # Sums of 40 float64 numbers, in another order.
    torch.testing.assert_close(found.total, moved.sum(dim=0), rtol=0, atol=1e-9 * float(x.abs().sum()))
    assert found.tokens == len(x)


def test_transforming_takes_the_memory_of_the_matrix() -> None:
    x = offset_inputs(0)
    hessian = hessian_of(x)
    found = hessian.transform_(random_transform(x, 0))
    assert found.matrix.data_ptr() == hessian.matrix.data_ptr()


def test_no_transform_changes_nothing() -> None:
    hessian = hessian_of(offset_inputs(0))
    assert hessian.transform_(ChannelTransform()) is hessian


@given(st.lists(st.integers(0, 24), max_size=4))
def test_split_streams_give_the_hessian_of_the_whole(cuts: list[int]) -> None:
    # Products and sums of these whole numbers are below 2^24: exact in float32 in any order.
    x = whole_numbers(24, 6)
    builder = HessianBuilder(6)
    for part in x.tensor_split(sorted(cuts)):
        builder.update(part)
    found = builder.finish()
    assert torch.equal(found.matrix.triu(), (x.t() @ x).triu())
    assert torch.equal(found.total, x.double().sum(dim=0))
    assert found.tokens == 24


def test_two_parts_of_the_data_add_up_to_the_whole() -> None:
    x = whole_numbers(24, 6)
    first, second = HessianBuilder(6), HessianBuilder(6)
    first.update(x[:10])
    second.update(x[10:])
    both, whole = first.finish() + second.finish(), hessian_of(x)
    assert torch.equal(both.matrix.triu(), whole.matrix.triu())
    assert torch.equal(both.total, whole.total)
    assert both.tokens == whole.tokens


@pytest.mark.parametrize("shape", [(24, 6), (4, 6, 6), (2, 3, 4, 6)])
def test_all_dimensions_before_the_channels_are_tokens(shape: tuple[int, ...]) -> None:
    x = whole_numbers(24, 6)
    builder = HessianBuilder(6)
    builder.update(x.reshape(shape))
    assert torch.equal(builder.finish().matrix.triu(), (x.t() @ x).triu())
    assert builder.finish().tokens == 24


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_inputs_of_any_float_dtype_add_up_in_float32(dtype: torch.dtype) -> None:
    # 24 · 256² is beyond float16, and 24 · (256² + 1) needs more bits than bfloat16 has.
    x = torch.tensor([[256.0, 1.0]]).expand(24, 2).to(dtype)
    builder = HessianBuilder(2)
    builder.update(x)
    expected = torch.tensor([[24.0 * 256**2, 24.0 * 256], [24.0 * 256, 24.0]])
    assert torch.equal(builder.finish().matrix, expected)
    assert torch.equal(builder.finish().total, torch.tensor([24.0 * 256, 24.0], dtype=torch.float64))


def test_a_builder_without_tokens_has_no_hessian() -> None:
    builder = HessianBuilder(3)
    builder.update(torch.zeros(0, 3))
    with pytest.raises(ValueError, match="no tokens"):
        builder.finish()


@given(st.integers(0, 1000))
def test_output_error_is_the_mean_squared_change_of_the_outputs(seed: int) -> None:
    x = offset_inputs(seed)
    change = torch.randn(5, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    explicit = float((change @ x.t()).square().sum()) / len(x)
    # What rounding the matrix to float32 may change, entry by entry.
    bound = ROUNDING * float((change.abs() @ exact(x).abs() * change.abs()).sum()) / len(x)
    assert output_error(hessian_of(x), change) == pytest.approx(explicit, rel=1e-9, abs=1.01 * bound)


def test_output_error_is_never_negative() -> None:
    # Rounded, this matrix has an eigenvalue below 0 along (1, −1).
    hessian = Hessian(torch.tensor([[1.0, 1.0 + 2.0**-23], [1.0 + 2.0**-23, 1.0]]), torch.zeros(2).double(), 1)
    assert output_error(hessian, torch.tensor([[1.0, -1.0]])) == 0.0


def test_the_matrix_of_many_channels_is_whole_on_and_above_its_diagonal() -> None:
    x = torch.randn(40, BLOCK + 90, generator=torch.Generator().manual_seed(0))
    builder = HessianBuilder(BLOCK + 90)
    for part in x.split(15):
        builder.update(part)
    matrix = builder.finish().matrix
    torch.testing.assert_close(matrix.triu(), (x.t() @ x).triu(), rtol=1e-4, atol=1e-4)


def wide_case(seed: int, rows: int = 40, channels: int = BLOCK + 90) -> tuple[Hessian, torch.Tensor]:
    """Correlated inputs of more channels than are summed in float32, and a change of a weight that reads them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(300, channels, generator=generator) + torch.randn(300, 1, generator=generator)
    return hessian_of(x), torch.randn(rows, channels, generator=generator)


@pytest.mark.parametrize("seed", range(5))
def test_the_output_error_in_float32_is_that_in_float64_to_the_promised_share(seed: int) -> None:
    hessian, change = wide_case(seed)
    exact = output_error(hessian, change.double())
    # Three standard deviations of √2 K 2^-24 Σ_j δ_j² H_jj, whose squares add up over rows.
    alone = (change.double().square() @ hessian.matrix.diagonal().double()).square().sum().sqrt()
    deviation = 2**0.5 * BLOCK * ROUNDING * float(alone) / hessian.tokens
    assert abs(output_error(hessian, change) - exact) <= 3 * deviation <= 1e-3 * exact


def test_a_change_whose_terms_cancel_is_computed_in_float64() -> None:
    # All inputs nearly one and the same number, and rows whose entries nearly add up to 0.
    x = 100.0 + torch.randn(300, BLOCK + 90, generator=torch.Generator().manual_seed(0))
    change = torch.randn(4, BLOCK + 90, generator=torch.Generator().manual_seed(1))
    change -= change.mean(dim=1, keepdim=True)
    hessian = hessian_of(x)
    assert output_error(hessian, change) == output_error(hessian, change.double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_output_error_is_the_sum_of_that_of_the_rows(dtype: torch.dtype) -> None:
    hessian, change = wide_case(0, rows=ROWS + 5)
    change = change.to(dtype)
    parts = [output_error(hessian, change[:7]), output_error(hessian, change[7:])]
    # Within what either way of summing is promised to be off.
    assert sum(parts) == pytest.approx(output_error(hessian, change), rel=2e-3 if dtype == torch.float32 else 1e-12)


def test_row_errors_are_the_quadratic_forms_of_the_rows() -> None:
    hessian, change = wide_case(1)
    wide = change.double()
    explicit = ((wide @ hessian.matrix.double()) * wide).sum(dim=1)
    torch.testing.assert_close(row_errors(hessian.matrix, wide), explicit, rtol=1e-12, atol=0)
    with_others_below = hessian.matrix.triu() + torch.full_like(hessian.matrix, 1e30).tril(-1)
    assert torch.equal(row_errors(with_others_below, wide), row_errors(hessian.matrix, wide))


def test_many_channels_are_transformed_as_few_are() -> None:
    hessian, _ = wide_case(2)
    transform = random_transform(torch.randn(9, BLOCK + 90, generator=torch.Generator().manual_seed(3)), 3)
    assert transform.shift is not None and transform.scale is not None
    given_matrix = hessian.matrix.clone()
    found = hessian.transform_(transform).matrix
    # Each entry concerns two channels alone.
    for pair in ([0, BLOCK + 1], [BLOCK - 1, BLOCK], [BLOCK + 88, BLOCK + 89]):
        few = Hessian(given_matrix[pair][:, pair], hessian.total[pair], hessian.tokens)
        part = ChannelTransform(transform.shift[pair], transform.scale[pair])
        assert torch.equal(found[pair][:, pair].triu(), few.transform_(part).matrix.triu())
