"""Numbers are found again, and only where they are."""

import torch

from channelwise.model.matching import distinct_numbers, match_channels, subsets


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_numbers_are_distinct_well_apart_and_none_is_one() -> None:
    for count in (1, 2, 3, 64, 4097):
        numbers = distinct_numbers(count, generator()).sort().values
        assert numbers.shape == (count,)
        assert bool((numbers.diff() > 1e-4).all())
        assert bool((numbers > 0.5).all() and (numbers < 2.0).all() and (numbers != 1.0).all())


def test_factors_and_offsets_are_found_in_any_order_and_repetition() -> None:
    old = torch.randn(7, 5, generator=generator(), dtype=torch.float64)
    numbers = distinct_numbers(9, generator())
    source = torch.tensor([3, 3, 8, 0, 5])
    found = match_channels(old, old * numbers[source], numbers, scale=True)
    assert found is not None and torch.equal(found, source)
    found = match_channels(old, old + numbers[source], numbers, scale=False)
    assert found is not None and torch.equal(found, source)


def test_nothing_is_found_where_a_channel_changes_otherwise() -> None:
    old = torch.randn(7, 5, generator=generator(), dtype=torch.float64)
    numbers = distinct_numbers(5, generator())
    new = old * numbers
    one_token = new.clone()
    one_token[2, 1] *= 1.0 + 1e-6
    unchanged = new.clone()
    unchanged[:, 1] = old[:, 1]
    dead = old.clone()
    dead[:, 1] = 0.0
    assert match_channels(old, one_token, numbers, scale=True) is None
    assert match_channels(old, unchanged, numbers, scale=True) is None
    assert match_channels(dead, dead * numbers, numbers, scale=True) is None
    assert match_channels(old, new[:3], numbers, scale=True) is None


def test_the_parts_of_fused_layers_are_among_the_subsets() -> None:
    index = torch.arange(96)
    wanted = [
        (48, index[48:]),  # gate, up
        (32, index[64:]),  # q, k, v
        (32, index.view(4, 3, 8)[:, 2].flatten()),  # q, k, v head by head
        (64, index[80:]),  # 8 query heads and 2 key and value heads of 8 channels
        (64, index.view(2, 6, 8)[:, 5].flatten()),  # the same group by group
        (80, index[88:]),  # 10 query heads and one key and value head
    ]
    for consumer, part in wanted:
        assert any(torch.equal(part, subset) for subset in subsets(96, consumer))
