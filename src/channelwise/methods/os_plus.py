"""Outlier Suppression+ (arXiv 2304.09145): channel-wise shift, and a scale with one searched threshold per site."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from channelwise.methods.options import OPTIONS
from channelwise.methods.site import Candidate, Choice, SiteView
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

        def losses_at(indices: Sequence[int]) -> Sequence[float]:
            scales = (threshold_scale(largest, thresholds[index]) for index in indices)
            return site.losses([Candidate(ChannelTransform(shift, scale)) for scale in scales])

        strides = STRIDES if self.search == "coarse_to_fine" else (1,)
        losses = search_minimum(losses_at, len(thresholds), strides)
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

    They are on the CPU, wherever the maxima are: numbers for the search, each of which divides a vector.
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


def search_minimum(
    losses_at: Callable[[Sequence[int]], Sequence[float]], size: int, strides: Sequence[int]
) -> dict[int, float]:
    """Losses by index: every strides[0]-th and the last, then by each further stride around the best two so far.

    The function is asked once for each stride. It need not be convex: the best of all that were looked at counts,
    index 0 always among them.
    """
    first = list({*range(0, size, strides[0]), size - 1})
    losses = dict(zip(first, losses_at(first), strict=True))
    for coarse, fine in pairwise(strides):
        best = sorted(losses, key=losses.__getitem__)[:2]
        around = (index for place in best for index in range(place - coarse + fine, place + coarse, fine))
        # A dictionary, unlike a set, keeps the order, which decides between equal losses.
        new = list(dict.fromkeys(index for index in around if 0 <= index < size and index not in losses))
        losses |= zip(new, losses_at(new) if new else (), strict=True)
    return losses
