"""Statistics of site inputs, gathered batch by batch; each has the reduction that joins two parts of a data set."""

from dataclasses import dataclass
from enum import Enum

import torch

from channelwise.engine.world import World
from channelwise.methods.hessian import HessianBuilder, blocks
from channelwise.methods.site import ChannelStatistics


class Reduction(Enum):
    """How the statistic of two parts of the data gives the statistic of the whole."""

    MINIMUM = "minimum"
    MAXIMUM = "maximum"
    SUM = "sum"


REDUCTIONS = {
    "minimum": Reduction.MINIMUM,
    "maximum": Reduction.MAXIMUM,
    "center_sum": Reduction.SUM,
    "absolute_sum": Reduction.SUM,
    "samples": Reduction.SUM,
    "tokens": Reduction.SUM,
}


@dataclass
class StatisticsBuilder:
    """Running statistics of one site's input; memory is a few vectors of [channels], whatever the data.

    device: where they are kept. On that of the inputs, nothing is read back from it.
    """

    channels: int
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        self.minimum = torch.full((self.channels,), torch.inf, device=self.device)
        self.maximum = torch.full((self.channels,), -torch.inf, device=self.device)
        self.center_sum = torch.zeros(self.channels, dtype=torch.float64, device=self.device)
        self.absolute_sum = torch.zeros(self.channels, dtype=torch.float64, device=self.device)
        self.samples = 0
        self.tokens = 0

    def update(self, x: torch.Tensor) -> None:
        """Add one batch [samples, tokens, channels], or [tokens, channels] as one sample; any float dtype."""
        if x.numel() == 0:
            return
        x = x.detach().reshape(1, -1, self.channels) if x.dim() < 3 else x.detach().flatten(1, -2)
        # On the CPU several times as fast as in 16 bits, as aminmax over tokens, and as sums in float64.
        x = x.float()
        low, high = x.amin(dim=1).to(self.device), x.amax(dim=1).to(self.device)
        self.minimum = torch.minimum(self.minimum, low.amin(dim=0))
        self.maximum = torch.maximum(self.maximum, high.amax(dim=0))
        self.center_sum += ((low + high) / 2).double().sum(dim=0)
        self.absolute_sum += x.abs().sum(dim=(0, 1)).double().to(self.device)
        self.samples += x.shape[0]
        self.tokens += x.shape[0] * x.shape[1]

    def finish(self) -> ChannelStatistics:
        """The statistics so far. Raises ValueError if no token was seen."""
        if self.tokens == 0:
            raise ValueError("no tokens were seen")
        center = (self.center_sum / self.samples).float()
        mean_absolute = (self.absolute_sum / self.tokens).float()
        return ChannelStatistics(self.minimum, self.maximum, center, self.tokens, mean_absolute)


def joined_statistics(builder: StatisticsBuilder, world: World) -> StatisticsBuilder:
    """The statistics of all ranks' samples, by each one's reduction; the same on every rank."""
    reduced = {
        Reduction.MINIMUM: world.minimum,
        Reduction.MAXIMUM: world.maximum,
        Reduction.SUM: world.total,
    }
    for name, reduction in REDUCTIONS.items():
        own = getattr(builder, name)
        if isinstance(own, torch.Tensor):
            setattr(builder, name, reduced[reduction](own))
        else:
            setattr(builder, name, int(world.totals([own])[0]))
    return builder


def joined_hessian(builder: HessianBuilder, world: World) -> HessianBuilder:
    """The sums of all ranks' samples; the same on every rank."""
    for start, end in blocks(builder.channels):
        # Half of the matrix is enough, as it is symmetric.
        rows = builder.matrix[start:end, start:]
        rows.copy_(world.total(rows))
    builder.total = world.total(builder.total)
    builder.tokens = int(world.totals([builder.tokens])[0])
    return builder
