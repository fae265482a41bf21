"""SmoothQuant (arXiv 2211.10438): a share of each channel's range moves into the weights."""

from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from channelwise.methods.options import OPTIONS
from channelwise.methods.site import Choice, SiteView, positive
from channelwise.numerics.transform import ChannelTransform


@dataclass(frozen=True, config=OPTIONS)
class SmoothQuant:
    """s_j = max|X_j|^α / max|W_:j|^(1 − α), eq. 4; the maximum over all linear layers of the site."""

    alpha: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5

    def choose(self, site: SiteView) -> Choice:
        """The smoothing scale, without a shift."""
        inputs = site.statistics.absolute_maximum
        weights = torch.stack([w.abs().amax(dim=0) for w in site.weights]).amax(dim=0)
        scale = positive(inputs).pow(self.alpha) / positive(weights).pow(1.0 - self.alpha)
        # A channel that is never anything but 0, or that nobody reads, keeps its unit.
        scale = torch.where((inputs > 0) & (weights > 0), scale, torch.ones_like(scale))
        return Choice(ChannelTransform(scale=scale), {"alpha": self.alpha})
