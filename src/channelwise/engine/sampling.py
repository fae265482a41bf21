"""Which tokens of the calibration set a search looks at: the same of every layer, whoever asks and whenever."""

from dataclasses import dataclass

import torch


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
        return flat[self.rows(sample, len(flat)).to(x.device)]
