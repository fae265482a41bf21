"""No transform: round-to-nearest as it is."""

from pydantic.dataclasses import dataclass

from channelwise.methods.options import OPTIONS
from channelwise.methods.site import Choice, SiteView
from channelwise.numerics.transform import ChannelTransform


@dataclass(frozen=True, config=OPTIONS)
class NoTransform:
    """Leaves the input as it is."""

    def choose(self, site: SiteView) -> Choice:
        """The identity."""
        return Choice(ChannelTransform())
