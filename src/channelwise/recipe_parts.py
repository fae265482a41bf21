"""The parts of a recipe: formats and granularities of weights, inputs and the embedding, and methods with options."""

import difflib
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from channelwise.engine.plan import EmbeddingPlan, InputPlan, SitePlan, WeightPlan
from channelwise.methods import METHODS
from channelwise.methods.gptq import Gptq
from channelwise.methods.imported import imported_method, is_import_path
from channelwise.methods.site import Method
from channelwise.numerics.granularity import COLUMN, ROW, TENSOR, Granularity
from channelwise.numerics.grids import FloatGrid, Grid, IntegerGrid, float_grids, grid_name

Bits = Annotated[int, Field(ge=2, le=8)]
Count = Annotated[int, Field(ge=1)]


class Strict(BaseModel):
    """Unknown keys and wrong types are errors, and nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Format(Strict):
    """Width and format: `integer`; one floating-point format, such as `e2m1`; or `search`, which is all of the width.

    symmetric: of integers, whether they do without a zero point.
    """

    bits: Bits
    format: str = "integer"
    symmetric: bool = True

    @model_validator(mode="after")
    def _format_of_this_width(self) -> Self:
        if self.format != "integer" and not self.symmetric:
            raise ValueError("symmetric: false goes with format: integer")
        known = {grid_name(grid).lower() for grid in float_grids(self.bits)}
        if self.format not in known | {"integer", "search"}:
            raise ValueError(
                f"no format {self.format!r} of {self.bits} bits; there are integer, search, {', '.join(sorted(known))}"
            )
        return self

    def grids(self) -> tuple[Grid, ...]:
        """The grids to choose from."""
        if self.format == "integer":
            return (IntegerGrid(self.bits, self.symmetric),)
        formats: tuple[FloatGrid, ...] = float_grids(self.bits)
        return formats if self.format == "search" else tuple(f for f in formats if grid_name(f).lower() == self.format)


class WeightRecipe(_Format):
    """Format, granularity and rounding of the weights.

    `group` needs group_size, a number or `whole`: all of a row or a column. Groups run along a row (`oc`), a column
    (`ic`), or whichever changes the layer's output less (`ada`): choose_on says whether that is the output of the
    site's part of the block, or the layer's own. clip: `search` cuts ranges to what changes the output least.
    rounding: {name: nearest} or {name: gptq, …}.
    """

    granularity: Literal["tensor", "output_channel", "group"] = "output_channel"
    group_size: Count | Literal["whole"] | None = None
    direction: Literal["oc", "ic", "ada"] = "oc"
    choose_on: Literal["part", "own"] = "part"
    clip: Literal["none", "search"] = "none"
    rounding: dict[str, Any] = {"name": "nearest"}

    @model_validator(mode="after")
    def _settings_where_they_belong(self) -> Self:
        if (self.granularity == "group") != (self.group_size is not None):
            raise ValueError("group_size goes with granularity: group, and only with it")
        if self.direction != "oc" and self.granularity != "group":
            raise ValueError(f"direction: {self.direction} goes with granularity: group")
        self.build_rounding()
        return self

    def build_rounding(self) -> Gptq | None:
        """GPTQ's settings, None for nearest. Raises ValueError (pydantic's too) for an unknown name or option."""
        options = dict(self.rounding)
        name = options.pop("name", None)
        if name not in ("nearest", "gptq"):
            raise ValueError(f"unknown rounding {name!r}; there are nearest and gptq")
        if name == "nearest" and options:
            raise ValueError(f"rounding: nearest takes no {next(iter(options))}")
        return Gptq(**options) if name == "gptq" else None

    def plan(self) -> WeightPlan:
        """The same as the engine takes it."""
        return WeightPlan(
            self.grids(),
            self._granularity("ic" if self.direction == "ic" else "oc"),
            alternative=self._granularity("ic") if self.direction == "ada" else None,
            choose_on=self.choose_on,
            rounding=self.build_rounding(),
            search_clip=self.clip == "search",
        )

    def _granularity(self, direction: str) -> Granularity:
        if self.granularity == "tensor":
            return TENSOR
        if isinstance(self.group_size, int):
            return Granularity("row_group" if direction == "oc" else "column_group", self.group_size)
        return ROW if direction == "oc" else COLUMN


class InputRecipe(_Format):
    """Format and granularity of inputs: static per `tensor`, dynamic per `token`, static per `channel` (OutlierTune).

    clip: `search` cuts a static range to the share of it that changes the site's output least.
    """

    granularity: Literal["tensor", "token", "channel"] = "tensor"
    clip: Literal["none", "search"] = "none"

    @model_validator(mode="after")
    def _clip_where_ranges_are_static(self) -> Self:
        if self.clip == "search" and self.granularity == "token":
            raise ValueError("clip: search goes with static inputs, not with granularity: token")
        return self

    def plan(self) -> InputPlan:
        """The same as the engine takes it: per-channel steps are a transform, so they are static there."""
        return InputPlan(self.grids(), "token" if self.granularity == "token" else "static")


class EmbeddingRecipe(_Format):
    """Format of the token embedding, one scale per row; clip: `search` finds the ranges of least squared error."""

    clip: Literal["none", "search"] = "none"

    @model_validator(mode="after")
    def _searched_where_it_can_be(self) -> Self:
        if not self.symmetric:
            raise ValueError("the embedding takes no zero points")
        if self.clip == "search" and self.format == "integer":
            raise ValueError("clip: search goes with floating-point formats")
        if self.clip == "none" and self.format == "search":
            raise ValueError("format: search goes with clip: search")
        return self

    def plan(self) -> EmbeddingPlan:
        """The same as the engine takes it."""
        return EmbeddingPlan(self.grids(), self.clip == "search")


class SiteRecipe(Strict):
    """One kind of site: the method's name and options, and its inputs (null: floating point).

    A method of the package goes by its name, one from outside by its import path, `package.module:Class`.
    """

    method: dict[str, Any] = {"name": "none"}
    inputs: InputRecipe | None

    @model_validator(mode="after")
    def _method_fits_inputs(self) -> Self:
        method = self.build_method()
        per_channel = self.inputs is not None and self.inputs.granularity == "channel"
        if per_channel != (type(method) is METHODS["outliertune"]):
            raise ValueError("inputs per channel go with method outliertune, and only with it")
        if self.inputs is None:
            return self
        if self.searches_formats and (self.inputs.granularity != "tensor" or self.inputs.clip == "search"):
            raise ValueError("llm_fp4 takes static inputs per tensor, and searches their range by itself")
        if self.searches_formats and self.inputs.format == "integer":
            raise ValueError("llm_fp4 takes floating-point inputs: format: search, or one such as e2m1")
        if not self.searches_formats and self.inputs.format == "search":
            raise ValueError("format: search goes with method llm_fp4")
        return self

    @property
    def searches_formats(self) -> bool:
        """Whether the method chooses formats and ranges by itself."""
        return type(self.build_method()) is METHODS["llm_fp4"]

    def build_method(self) -> Method:
        """The method with its options. Raises ValueError (pydantic's too) for an unknown name or option."""
        options = dict(self.method)
        name = options.pop("name", None)
        if isinstance(name, str) and is_import_path(name):
            return imported_method(name, options)
        if not isinstance(name, str) or name not in METHODS:
            raise ValueError(f"unknown method {name!r}{nearest(str(name), METHODS)}")
        return METHODS[name](**options)

    def plan(self) -> SitePlan:
        """The same as the engine takes it."""
        if self.inputs is None:
            return SitePlan(self.build_method(), None)
        return SitePlan(self.build_method(), self.inputs.plan(), search_clip=self.inputs.clip == "search")


def nearest(name: str, known: Any) -> str:
    """`; did you mean …?` with the known names like this one, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else ""
