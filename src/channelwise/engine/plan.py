"""What the engine is told to do: a recipe, resolved to plain data."""

from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from channelwise.methods.site import Method
from channelwise.runtime.scheme import InputScheme, WeightScheme


@dataclass(frozen=True)
class SitePlan:
    """How one kind of site is treated: the method that chooses its transform, and its inputs (None: floating point).

    search_clip: whether a static input range is cut to the share of it that changes the site's output least.
    """

    method: Method
    inputs: InputScheme | None
    search_clip: bool = False


@dataclass(frozen=True)
class Plan:
    """The whole treatment of a model.

    weights: grid and granularity of every weight. stream, inner: the two kinds of sites (`model/sites.py`).
    exclude: patterns (fnmatch) of full module names that stay floating point.
    sequential: whether a site sees inputs from already quantized layers before it in its block, or only from
    quantized earlier blocks. search_tokens: how many calibration tokens, whole samples, a search looks at.
    attention_bits: width of the inputs of the attention's two matrix products, None for floating point.
    """

    weights: WeightScheme
    stream: SitePlan
    inner: SitePlan
    exclude: tuple[str, ...] = ()
    sequential: bool = True
    search_tokens: int = 4096
    attention_bits: int | None = None

    def site_plan(self, kind: str) -> SitePlan:
        """The plan of a `stream` or `inner` site."""
        return self.stream if kind == "stream" else self.inner

    def excludes(self, name: str) -> bool:
        """Whether the module of this full name stays floating point."""
        return any(fnmatchcase(name, pattern) for pattern in self.exclude)


@dataclass(frozen=True)
class SiteRecord:
    """What was done at one site: full name of its first linear layer, and what was found.

    largest: largest |x| of a channel; median: the median over channels of the largest |x|.
    asymmetry: the largest |centre| of a channel over its half range.
    """

    name: str
    linears: tuple[str, ...]
    kind: str
    channels: int
    tokens: int
    largest: float
    median: float
    asymmetry: float
    notes: dict[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True)
class WalkRecord:
    """The walk: its sites in order, and its wall time in seconds."""

    sites: tuple[SiteRecord, ...]
    seconds: float
