"""AWQ (arXiv 2306.00978): weight columns of loud input channels are scaled up before rounding, by a searched power."""

from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from channelwise.methods.options import OPTIONS
from channelwise.methods.site import Candidate, Choice, SiteView, positive
from channelwise.numerics.transform import ChannelTransform


@dataclass(frozen=True, config=OPTIONS)
class Awq:
    """s_j = mean|X_j|^α, α on a grid from 0 (no scaling) to just below 1, by the site's output error (eq. 4 and 5)."""

    steps: Annotated[int, Field(ge=1, le=1000)] = 20

    def choose(self, site: SiteView) -> Choice:
        """The transform with the least loss; α = 0, which changes nothing, is among them.

        Raises ValueError where the statistics hold no mean of |X|.
        """
        loudness = site.statistics.mean_absolute
        if loudness is None:
            raise ValueError("AWQ needs the mean of |X|")
        transforms = [awq_transform(loudness, step / self.steps) for step in range(self.steps)]
        losses = site.losses([Candidate(transform) for transform in transforms])
        best = min(range(self.steps), key=losses.__getitem__)
        notes = {"alpha": best / self.steps, "loss": losses[best], "loss_unscaled": losses[0]}
        return Choice(transforms[best], notes)


def awq_transform(loudness: torch.Tensor, power: float) -> ChannelTransform:
    """X̃_j = X_j / s_j with s_j = loudness_j^power, in a unit that makes the largest and the smallest s reciprocals."""
    if power == 0:
        return ChannelTransform()
    scale = positive(loudness).pow(power).clamp(min=1e-4)
    return ChannelTransform(scale=scale / (scale.amax() * scale.amin()).sqrt())
