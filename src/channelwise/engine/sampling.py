"""Which tokens of the calibration set a search looks at: the same of every layer, whoever asks and whenever."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

TOKEN_IDS = 2
"""Dimensions of token ids [batch, tokens]."""


@dataclass(frozen=True)
class TokenSampler:
    """A share of every calibration sample's tokens, drawn at random but always the same for one seed."""

    share: float = 1.0
    seed: int = 0

    def rows(self, sample: int, tokens: int) -> torch.Tensor:
        """The places of the chosen among so many tokens of a sample, int64, rising; at least one."""
        if self.share >= 1.0 or tokens == 0:
            return torch.arange(tokens)
        count = min(tokens, max(1, round(tokens * self.share)))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + sample)
        return torch.randperm(tokens, generator=generator)[:count].sort().values

    def chosen(self, sample: int, x: torch.Tensor) -> torch.Tensor:
        """The chosen rows of x [..., tokens, channels] as [chosen tokens, channels]."""
        flat = x.reshape(-1, x.shape[-1])
        # The host need not wait until the device has the places.
        return flat[self.rows(sample, len(flat)).to(x.device, non_blocking=True)]


def items_of(batches: Sequence[Mapping[str, torch.Tensor]]) -> list[int]:
    """What each batch holds: token ids, or images."""
    counted = (batch.get("input_ids", next(iter(batch.values()))) for batch in batches)
    return [held.numel() if held.dim() == TOKEN_IDS else len(held) for held in counted]


def search_samples(tokens: Sequence[float], wanted: int, seed: int) -> list[int]:
    """Calibration samples (batches) in random order until so many tokens are reached. tokens: of each."""
    order = list(range(len(tokens)))
    random.Random(seed).shuffle(order)
    chosen, total = [], 0.0
    for sample in order:
        chosen.append(sample)
        total += tokens[sample]
        if total >= wanted:
            break
    return chosen
