"""Changes of a producer's channels by known numbers, and what is seen of them at the sites."""

from dataclasses import dataclass

import torch

from channelwise.model.matching import match_channels
from channelwise.model.probing import Change, Trace
from channelwise.model.sites import Site


@dataclass(frozen=True)
class Disturbance:
    """Two frozen runs, without and with the numbers at a producer's output, and which modules' inputs differ."""

    before: Trace
    after: Trace
    changed: tuple[str, ...]

    def match(self, site: Site, numbers: torch.Tensor, scale: bool) -> torch.Tensor | None:
        """The site's channels among the numbers, as `match_channels`."""
        old, new = (
            torch.cat([x.reshape(-1, site.channels) for x in trace.inputs[site.name]])
            for trace in (self.before, self.after)
        )
        return match_channels(old, new, numbers, scale)


def change_at(image: torch.Tensor, numbers: torch.Tensor, scale: bool) -> Change:
    """A function that multiplies (or offsets) the image channels of its argument by the numbers."""

    def change(y: torch.Tensor) -> torch.Tensor:
        vector = torch.full(y.shape[-1:], 1.0 if scale else 0.0, dtype=y.dtype, device=y.device)
        vector[image.to(y.device)] = numbers.to(y)
        return y * vector if scale else y + vector

    return change


def undone(factors: torch.Tensor, offsets: torch.Tensor) -> Change:
    """A function that takes offsets [channels] off its argument and divides by factors [channels]."""
    return lambda x: (x - offsets.to(x)) / factors.to(x)
