"""Statistics of site inputs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from channelwise.engine.statistics import REDUCTIONS, Reduction, StatisticsBuilder


def build(batches: list[torch.Tensor]) -> StatisticsBuilder:
    builder = StatisticsBuilder(batches[0].shape[-1])
    for batch in batches:
        builder.update(batch)
    return builder


@given(st.integers(1, 5), st.integers(1, 7), st.integers(1, 9), st.integers(0, 100))
def test_parts_joined_by_their_reductions_give_the_whole(samples: int, tokens: int, channels: int, seed: int) -> None:
    x = torch.randn(2 * samples, tokens, channels, generator=torch.Generator().manual_seed(seed))
    whole = build([x])
    parts = [build([x[:samples]]), build([x[samples:]])]
    for name, reduction in REDUCTIONS.items():
        values = [torch.as_tensor(getattr(part, name), dtype=torch.float64) for part in parts]
        joined = torch.stack(values)
        expected = torch.as_tensor(getattr(whole, name), dtype=torch.float64)
        result = {
            Reduction.MINIMUM: joined.amin(dim=0),
            Reduction.MAXIMUM: joined.amax(dim=0),
            Reduction.SUM: joined.sum(dim=0),
        }[reduction]
        # A batch's sums are rounded to float32.
        torch.testing.assert_close(result, expected, rtol=1e-6 if reduction is Reduction.SUM else 0, atol=1e-6)


def test_batches_of_any_number_give_exact_ranges_and_sample_centers() -> None:
    x = torch.tensor([[[1.0, -2.0], [3.0, 0.0]], [[5.0, -8.0], [-1.0, 4.0]]])
    for batches in ([x], [x[:1], x[1:]]):
        statistics = build(batches).finish()
        assert statistics.minimum.tolist() == [-1.0, -8.0]
        assert statistics.maximum.tolist() == [5.0, 4.0]
        assert statistics.center.tolist() == [2.0, -2.0]
        assert statistics.sample_center.tolist() == [2.0, -1.5]
        assert statistics.absolute_maximum.tolist() == [5.0, 8.0]
        assert statistics.tokens == 4


def test_a_matrix_of_tokens_is_one_sample_and_no_tokens_are_none() -> None:
    builder = build([torch.zeros(0, 3)])
    with pytest.raises(ValueError, match="no tokens"):
        builder.finish()
    builder.update(torch.ones(5, 3, dtype=torch.bfloat16))
    assert (builder.samples, builder.tokens) == (1, 5)
    assert builder.finish().minimum.dtype == torch.float32
