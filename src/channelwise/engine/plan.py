"""What the engine is told to do: a recipe, resolved to plain data."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

from channelwise.methods.gptq import Gptq
from channelwise.methods.site import Method
from channelwise.numerics.granularity import Granularity
from channelwise.numerics.grids import FloatGrid, Grid
from channelwise.runtime.scheme import InputScheme, WeightScheme

Objective = Literal["auto", "output", "fisher"]


@dataclass(frozen=True)
class WeightPlan:
    """The grids that a weight may have (several: the method chooses), its granularity, and how it is rounded.

    alternative: groups in the other direction, taken for a layer where they change its output less (AdaDim); choose_on:
    whether that is the output of the site's part of the block (what reaches the next layers), or the layer's own.
    rounding: GPTQ's settings, None rounds to nearest. search_clip: whether ranges are cut to what changes the output
    least.
    """

    grids: tuple[Grid, ...]
    granularity: Granularity
    alternative: Granularity | None = None
    choose_on: Literal["part", "own"] = "part"
    rounding: Gptq | None = None
    search_clip: bool = False

    @property
    def needs_hessian(self) -> bool:
        """Whether the inputs' second moments are needed."""
        return self.rounding is not None or self.alternative is not None or self.search_clip

    @property
    def scheme(self) -> WeightScheme:
        """What a weight gets where no method chooses."""
        return WeightScheme(plain_grid(self.grids), self.granularity)


@dataclass(frozen=True)
class InputPlan:
    """The grids that an input may have (several: the method chooses), static or per token."""

    grids: tuple[Grid, ...]
    kind: Literal["static", "token"]

    @property
    def scheme(self) -> InputScheme:
        """What an input gets where no method chooses."""
        return InputScheme(plain_grid(self.grids), self.kind)


@dataclass(frozen=True)
class EmbeddingPlan:
    """The grids that the token embedding may have; search: whether grid and ranges are those of least squared error.

    One scale per row; without a search it covers the row's largest number.
    """

    grids: tuple[Grid, ...]
    search: bool = False


def plain_grid(grids: Sequence[Grid]) -> Grid:
    """The grid to take where none is searched: of floating-point ones that with about two exponent bits (E2M1)."""

    def distance(grid: Grid) -> int:
        return abs(grid.exponent_bits - 2) if isinstance(grid, FloatGrid) else 0

    return min(grids, key=distance)


@dataclass(frozen=True)
class SitePlan:
    """How one kind of site is treated: the method that chooses its transform, and its inputs (None: floating point).

    search_clip: whether a static input range is cut to the share of it that changes the site's output least.
    """

    method: Method
    inputs: InputPlan | None
    search_clip: bool = False


@dataclass(frozen=True)
class Plan:
    """The whole treatment of a model.

    weights: grid and granularity of every weight. stream, inner: the two kinds of sites (`model/sites.py`).
    head: the layer that gives the output's logits over the vocabulary, embedding: the table of the input's tokens;
    None leaves them in floating point, and models without one are not concerned.
    exclude: patterns (fnmatch) of full module names that stay floating point.
    sequential: whether a site sees inputs from already quantized layers before it in its block, or only from
    quantized earlier blocks. search_tokens: how many calibration tokens, whole samples, a search looks at.
    calibrate_on: whether a site's inputs come from the quantized layers before it, or from the original model.
    objective: what errors of a layer's output count in a search of formats: all the same (`output`), or by the diagonal
    Fisher information (`fisher`); `auto` is the former for causal language models, the latter for all others.
    attention_bits: width of the inputs of the attention's two matrix products, None for floating point.
    """

    weights: WeightPlan
    stream: SitePlan
    inner: SitePlan
    head: SitePlan | None = None
    embedding: EmbeddingPlan | None = None
    exclude: tuple[str, ...] = ()
    sequential: bool = True
    search_tokens: int = 4096
    calibrate_on: Literal["quantized", "original"] = "quantized"
    objective: Objective = "output"
    attention_bits: int | None = None

    def site_plan(self, kind: str) -> SitePlan:
        """The plan of a `stream` or `inner` site, or of the `head`. Raises ValueError for a head without a plan."""
        if kind == "head":
            if self.head is None:
                raise ValueError("the plan has nothing for the head")
            return self.head
        return self.stream if kind == "stream" else self.inner

    def excludes(self, name: str) -> bool:
        """Whether the module of this full name stays floating point."""
        return any(fnmatchcase(name, pattern) for pattern in self.exclude)


@dataclass(frozen=True)
class SiteRecord:
    """What was done at one site: full name of its first linear layer, and what was found.

    largest: largest |x| of a channel; median: the median over channels of the largest |x|.
    asymmetry: the largest |centre| of a channel over its half range. layers: by full name, what was chosen for a layer.
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
    layers: dict[str, dict[str, float | str]] = field(default_factory=dict)


@dataclass(frozen=True)
class WalkRecord:
    """The walk: its sites in order, its wall time in seconds, and what was chosen for the token embedding.

    phases: seconds by phase of the work, over all blocks. floating: what was left in floating point: linear layers that
    the plan excludes, modules beside the blocks (a vision tower), the output layer.
    """

    sites: tuple[SiteRecord, ...]
    seconds: float
    embedding: dict[str, float | str] = field(default_factory=dict)
    phases: dict[str, float] = field(default_factory=dict)
    floating: tuple[str, ...] = ()
