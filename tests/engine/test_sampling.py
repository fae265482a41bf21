"""Which tokens a search looks at."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from channelwise.engine.sampling import TokenSampler

TOKENS = 200


@given(st.floats(0.001, 0.999), st.integers(1, 300), st.integers(0, 50), st.integers(0, 50))
def test_the_rows_are_rising_distinct_and_as_many_as_the_share_says(
    share: float, tokens: int, sample: int, seed: int
) -> None:
    rows = TokenSampler(share, seed).rows(sample, tokens)
    assert len(rows) == max(1, round(share * tokens))
    assert bool((rows.diff() > 0).all())
    assert int(rows[0]) >= 0 and int(rows[-1]) < tokens


def test_a_seed_and_a_sample_always_have_the_same_rows() -> None:
    torch.manual_seed(1)
    first = TokenSampler(0.3, 7).rows(4, TOKENS)
    torch.manual_seed(2)
    assert torch.equal(TokenSampler(0.3, 7).rows(4, TOKENS), first)


def test_other_seeds_and_samples_have_other_rows() -> None:
    """60 of 200 at random: two equal draws among these would be a wonder."""
    draws = {tuple(TokenSampler(0.3, seed).rows(sample, TOKENS).tolist()) for seed in range(5) for sample in range(5)}
    assert len(draws) == 25


def test_every_token_is_drawn_by_some_seed() -> None:
    """A token is missed by 100 draws of a third with chance (2/3)^100."""
    drawn = torch.cat([TokenSampler(1 / 3, seed).rows(0, 30) for seed in range(100)])
    assert torch.equal(drawn.unique(), torch.arange(30))


@pytest.mark.parametrize("share", [1.0, 2.5])
def test_a_share_of_one_or_more_takes_all(share: float) -> None:
    assert torch.equal(TokenSampler(share).rows(3, TOKENS), torch.arange(TOKENS))


@pytest.mark.parametrize("share", [0.1, 1.0])
def test_of_no_tokens_none_are_taken(share: float) -> None:
    assert TokenSampler(share).rows(0, 0).tolist() == []
    assert TokenSampler(share).chosen(0, torch.zeros(0, 4)).shape == (0, 4)


@pytest.mark.parametrize("share", [0.4, 1.0])
def test_chosen_are_the_rows_of_the_flattened_tokens(share: float) -> None:
    x = torch.arange(3 * 5 * 4, dtype=torch.float32).view(3, 5, 4)
    sampler = TokenSampler(share, 1)
    assert torch.equal(sampler.chosen(2, x), x.view(15, 4)[sampler.rows(2, 15)])
    assert torch.equal(sampler.chosen(2, x), sampler.chosen(2, x.view(15, 4)))
