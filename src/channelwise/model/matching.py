"""Finding known numbers in measured tensors: which producer channel a consumer channel comes from."""

from collections.abc import Iterator

import torch

MATCH_TOLERANCE = 1e-9


def distinct_numbers(count: int, generator: torch.Generator) -> torch.Tensor:
    """Different numbers in (0.5, 2), none of them 1, in random order and well apart; float64 [count]."""
    places = count + count % 2
    steps = (torch.randperm(places, generator=generator)[:count].double() + 0.5) / places
    return 0.5 * 4.0**steps


def match_channels(old: torch.Tensor, new: torch.Tensor, numbers: torch.Tensor, scale: bool) -> torch.Tensor | None:
    """Which of the numbers turns each channel of `old` into that of `new`, as a factor (scale) or as an offset.

    old, new: [tokens, channels]; numbers: float64 [count]. Returns int64 [channels], indices into numbers, or None if
    a channel is changed differently from token to token, or by none of the numbers.
    """
    if old.shape != new.shape or not len(old):
        return None
    measured = (new * old).sum(dim=0) / (old * old).sum(dim=0) if scale else (new - old).mean(dim=0)
    expected = old * measured if scale else old + measured
    size = torch.maximum(old.abs(), new.abs()).amax(dim=0).clamp(min=1e-30)
    constant = (new - expected).abs().amax(dim=0) <= MATCH_TOLERANCE * size
    index, distance = _nearest(measured, numbers.to(measured))
    exact = distance <= MATCH_TOLERANCE * (1.0 if scale else size.clamp(min=1.0))
    return index.cpu() if bool((constant & exact).all()) else None


def subsets(channels: int, consumer_channels: int) -> Iterator[torch.Tensor]:
    """Regular parts of a fused layer's output that might alone be linear in a consumer's input; int64 indices.

    Parts of a sequence cut in runs of equal length, every m-th run: m is 2 for two fused halves, and for fused q, k, v
    the number of heads over that of value heads plus 2. A wrong guess costs one run of the block and proves nothing.
    """
    index = torch.arange(channels)
    doubled = 2 * channels // max(channels - consumer_channels, 1)
    for parts in dict.fromkeys((2, 3, doubled)):
        if parts < 2 or channels % parts:
            continue
        longest = channels // parts
        for run in (length for length in range(longest, 0, -1) if longest % length == 0):
            run_index = (index // run) % parts
            for part in range(parts - 1, -1 if parts <= 3 else parts - 2, -1):
                yield index[run_index == part]


def _nearest(values: torch.Tensor, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For each value the index of the nearest number, and how far it is."""
    rising, order = torch.sort(numbers)
    above = torch.searchsorted(rising, values).clamp(max=len(rising) - 1)
    choices = torch.stack([above, (above - 1).clamp(min=0)])
    distance, choice = (rising[choices] - values).abs().min(dim=0)
    return order[choices.gather(0, choice[None])[0]], distance
