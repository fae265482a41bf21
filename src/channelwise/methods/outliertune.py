"""OutlierTune (arXiv 2406.18832): every input channel gets its own step, dequantization is executed beforehand."""

from typing import Literal

import torch
from pydantic.dataclasses import dataclass

from channelwise.methods.options import OPTIONS
from channelwise.methods.site import Candidate, ChannelStatistics, Choice, SiteView, positive
from channelwise.numerics.grids import FloatGrid, Grid
from channelwise.numerics.transform import ChannelTransform

SMALLEST_SHARE = 2.0**-23
"""ε: a channel's step is at least this share of the largest channel's, so a dead channel's is a positive number."""


@dataclass(frozen=True, config=OPTIONS)
class OutlierTune:
    """z_j the centre of the channel's range, s_j = max|X_j − z_j| / q_max, moved into the weights.

    shift: `center` symmetrizes by the range's centre; `whole_steps` rounds that centre to a multiple of the channel's
    step, so that 0 stays exactly representable (after ReLU, GELU or a gate most values are 0); `none` leaves it out;
    `search` takes the one of the three with the least loss.
    center: the centre of the global range (as in OS+), or the mean of the samples' centres (the authors' code).
    """

    shift: Literal["center", "whole_steps", "none", "search"] = "center"
    center: Literal["global", "sample_mean"] = "global"

    def choose(self, site: SiteView) -> Choice:
        """Centre, then the ranges of the centred channels, then the scale: the paper's order."""
        if len(site.input_grids) != 1:
            raise ValueError("OutlierTune needs inputs quantized to one grid")
        levels = _levels(site.input_grids[0])
        kinds = ("none", "whole_steps", "center") if self.shift == "search" else (self.shift,)
        transforms = {kind: self._transform(site.statistics, kind, levels) for kind in kinds}
        if len(kinds) == 1:
            return Choice(transforms[kinds[0]], {"shift": kinds[0]})
        found = site.losses([Candidate(transform) for transform in transforms.values()])
        losses = dict(zip(transforms, found, strict=True))
        best = min(losses, key=losses.__getitem__)
        return Choice(transforms[best], {"shift": best, "loss": losses[best]})

    def _transform(self, statistics: ChannelStatistics, shift: str, levels: float) -> ChannelTransform:
        if shift == "none":
            return ChannelTransform(scale=channel_steps(statistics.absolute_maximum, levels))
        center = statistics.center if self.center == "global" else statistics.sample_center
        steps = channel_steps(statistics.absolute_maximum_around(center), levels)
        if shift == "whole_steps":
            # Rounding the centre can push one end out by half a step: leave room for it.
            steps = channel_steps(statistics.absolute_maximum_around(center), levels - 0.5)
            center = torch.round(center / steps) * steps
        return ChannelTransform(shift=center, scale=steps)


def _levels(grid: Grid) -> float:
    """How many steps reach from the centre to the end of the grid."""
    if isinstance(grid, FloatGrid):
        return grid.largest_value
    return float(grid.highest) if grid.symmetric else grid.highest / 2


def channel_steps(largest: torch.Tensor, levels: float) -> torch.Tensor:
    """s_j = max(a_j / q_max, ε) with ε a small share of the largest channel's step; float32 [channels]."""
    return positive(torch.clamp(largest / levels, min=float(largest.amax()) / levels * SMALLEST_SHARE))
