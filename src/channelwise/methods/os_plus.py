"""Outlier Suppression+ (arXiv 2304.09145): channel-wise shift, and a scale with one searched threshold per site."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from channelwise.methods.options import OPTIONS
from channelwise.methods.site import Choice, SiteView
from channelwise.numerics.transform import ChannelTransform

STRIDES = (12, 4, 1)
"""The first pass looks at every twelfth threshold, each further one closer around the best two so far."""


@dataclass(frozen=True, config=OPTIONS)
class OutlierSuppressionPlus:
    """z_j = (max_j + min_j)/2 (eq. 4); s_j = max(1, max|X_j − z_j| / t) (eq. 8), t searched on the site's output.

    shift: `always`, `never`, or `search`: whichever has the lower loss. search: `full` looks at every threshold of the
    grid, `coarse_to_fine` at about a quarter of them. steps: the size of the grid, from max|X − z| ("no scaling")
    geometrically down to the smallest channel's maximum, below which all channels are equal and nothing changes.
    """

    shift: Literal["always", "never", "search"] = "always"
    search: Literal["coarse_to_fine", "full"] = "coarse_to_fine"
    steps: Annotated[int, Field(ge=2, le=10_000)] = 100

    def choose(self, site: SiteView) -> Choice:
        """The shift, then the threshold with the least change of the output."""
        center = site.statistics.center
        shifts: dict[str, list[torch.Tensor | None]] = {"always": [center], "never": [None], "search": [None, center]}
        found = [self._search(site, shift) for shift in shifts[self.shift]]
        return min(found, key=lambda choice: float(choice.notes["loss"]))

    def _search(self, site: SiteView, shift: torch.Tensor | None) -> Choice:
        center = torch.zeros_like(site.statistics.minimum) if shift is None else shift
        largest = site.statistics.absolute_maximum_around(center)
        thresholds = threshold_grid(largest, self.steps)

        def loss(index: int) -> float:
            return site.loss(ChannelTransform(shift, threshold_scale(largest, thresholds[index])))

        strides = STRIDES if self.search == "coarse_to_fine" else (1,)
        losses = search_minimum(loss, len(thresholds), strides)
        best = min(losses, key=lambda index: (losses[index], index))
        threshold = thresholds[best]
        notes: dict[str, float | str] = {
            "t": float(threshold),
            "t_over_max": float(threshold / thresholds[0]),
            "loss": losses[best],
            "loss_unscaled": losses[0],
            "shift": "none" if shift is None else "center",
        }
        return Choice(ChannelTransform(shift, threshold_scale(largest, threshold)), notes)


def threshold_scale(largest: torch.Tensor, threshold: torch.Tensor | float) -> torch.Tensor:
    """s_j = max(1, a_j / t) for the centred channel maxima a_j; float32 [channels]."""
    return torch.clamp(largest / threshold, min=1.0)


def threshold_grid(largest: torch.Tensor, steps: int) -> torch.Tensor:
    """Thresholds from the largest channel maximum down to the smallest positive one, geometric, float32 [≤ steps].

    The paper's grid is linear down to 1.0 or 0.1, chosen by model family; the geometric one needs no such choice, and
    below the smallest channel maximum s = a/t for every channel, so that a smaller t only changes the unit.
    """
    top = float(largest.amax())
    if top <= 0:
        return torch.ones(1)
    bottom = max(float(largest[largest > 0].amin()), top * 1e-4)
    if bottom >= top:
        return torch.tensor([top])
    exponents = torch.linspace(0, 1, steps, dtype=torch.float64)
    grid = top * (bottom / top) ** exponents
    grid[0] = top
    return grid.float()


def search_minimum(loss: Callable[[int], float], size: int, strides: Sequence[int]) -> dict[int, float]:
    """Losses by index: every strides[0]-th and the last, then by each further stride around the best two so far.

    The function need not be convex: the best of all that were looked at counts, index 0 always among them.
    """
    losses = {index: loss(index) for index in {*range(0, size, strides[0]), size - 1}}
    for coarse, fine in pairwise(strides):
        for best in sorted(losses, key=losses.__getitem__)[:2]:
            for index in range(best - coarse + fine, best + coarse, fine):
                if 0 <= index < size and index not in losses:
                    losses[index] = loss(index)
    return losses
