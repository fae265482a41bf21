"""Recipes: what to do with a model, as YAML, checked strictly. Unknown keys are errors."""

import difflib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from channelwise.engine.plan import EmbeddingPlan, InputPlan, Plan, SitePlan, WeightPlan
from channelwise.errors import InputError
from channelwise.methods import METHODS
from channelwise.methods.site import Method
from channelwise.numerics.granularity import Granularity
from channelwise.numerics.grids import FloatGrid, Grid, IntegerGrid, float_grids, grid_name

Bits = Annotated[int, Field(ge=2, le=8)]
Count = Annotated[int, Field(ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Format(_Strict):
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
    """Format and granularity of the weights; `group` needs group_size, and runs along a row (`oc`) or a column (`ic`)."""

    granularity: Literal["tensor", "output_channel", "group"] = "output_channel"
    group_size: Count | None = None
    direction: Literal["oc", "ic"] = "oc"

    @model_validator(mode="after")
    def _group_size_where_it_belongs(self) -> Self:
        if (self.granularity == "group") != (self.group_size is not None):
            raise ValueError("group_size goes with granularity: group, and only with it")
        return self

    def plan(self) -> WeightPlan:
        """The same as the engine takes it."""
        kinds = {"tensor": "tensor", "output_channel": "row", "group": f"{_GROUP_AXIS[self.direction]}_group"}
        granularity = Granularity(kinds[self.granularity], self.group_size)  # type: ignore[arg-type]
        return WeightPlan(self.grids(), granularity)


_GROUP_AXIS = {"oc": "row", "ic": "column"}


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


class SiteRecipe(_Strict):
    """One kind of site: the method's name and options, and its inputs (null: floating point)."""

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
        if name not in METHODS:
            raise ValueError(f"unknown method {name!r}{_nearest(str(name), METHODS)}")
        return METHODS[name](**options)


class CalibrationRecipe(_Strict):
    """How many samples of how many tokens; a shorter text or model limit gives fewer."""

    samples: Count = 128
    length: Count = 512


class Recipe(_Strict):
    """A recipe. `stream` sites read the residual stream (q,k,v; fc1; gate,up), `inner` ones do not (out; down).

    head: the layer that gives the logits over the vocabulary, embedding: the token table; null leaves them as they are.
    """

    name: str
    summary: str
    paper: str | None = None
    weights: WeightRecipe
    stream: SiteRecipe
    inner: SiteRecipe
    head: SiteRecipe | None = None
    embedding: EmbeddingRecipe | None = None
    attention_bits: Bits | None = None
    exclude: tuple[str, ...] = ()
    sequential: bool = True
    search_tokens: Count = 4096
    calibrate_on: Literal["quantized", "original"] = "quantized"
    objective: Literal["auto", "output", "fisher"] = "output"
    calibration: CalibrationRecipe = CalibrationRecipe()

    @model_validator(mode="after")
    def _weights_fit_the_methods(self) -> Self:
        sites = [site for site in (self.stream, self.inner, self.head) if site is not None]
        searched = [site.searches_formats for site in sites]
        if self.weights.format == "search" and not all(searched):
            raise ValueError("weights: format: search goes with method llm_fp4 at every site")
        if any(searched) and (self.weights.format == "integer" or self.weights.granularity != "output_channel"):
            raise ValueError("llm_fp4 takes floating-point weights with granularity: output_channel")
        return self

    def to_plan(self) -> Plan:
        """The recipe as the engine takes it."""
        return Plan(
            weights=self.weights.plan(),
            stream=_site_plan(self.stream),
            inner=_site_plan(self.inner),
            head=None if self.head is None else _site_plan(self.head),
            embedding=None if self.embedding is None else self.embedding.plan(),
            exclude=self.exclude,
            sequential=self.sequential,
            search_tokens=self.search_tokens,
            calibrate_on=self.calibrate_on,
            objective=self.objective,
            attention_bits=self.attention_bits,
        )


def _site_plan(site: SiteRecipe) -> SitePlan:
    if site.inputs is None:
        return SitePlan(site.build_method(), None)
    return SitePlan(site.build_method(), site.inputs.plan(), search_clip=site.inputs.clip == "search")


def recipe_names() -> tuple[str, ...]:
    """The names of the recipes that come with the package, METHOD-wNaM, the widest first and then by method."""
    folder = resources.files("channelwise.recipes")
    names = [f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")]

    def order(name: str) -> tuple[int, str]:
        method, _, widths = name.rpartition("-w")
        return (-int(widths.partition("a")[0]), method)

    return tuple(sorted(names, key=order))


def recipe_text(name: str) -> str:
    """The YAML of a recipe of the package. Raises InputError with the nearest names if there is none."""
    if name not in recipe_names():
        hint = _nearest(name, recipe_names()) or "; `channelwise recipes` lists them"
        raise InputError(f"no recipe is called {name!r}{hint}")
    return (resources.files("channelwise.recipes") / f"{name}.yaml").read_text(encoding="utf-8")


def load_recipe(source: str | Path | dict[str, Any] | Recipe) -> Recipe:
    """A recipe by name, from a .yaml file, or from data. Raises InputError, one line, for anything that is wrong."""
    if isinstance(source, Recipe):
        return source
    if isinstance(source, dict):
        return _validated(source, "recipe")
    path = Path(source)
    if path.suffix not in (".yaml", ".yml"):
        return _validated(_parsed(recipe_text(str(source)), str(source)), str(source))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot read the recipe: {error}") from error
    return _validated(_parsed(text, str(path)), str(path))


def _parsed(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{where}: not YAML: {' '.join(str(error).split())}") from error


def _validated(data: Any, where: str) -> Recipe:
    if not isinstance(data, dict):
        raise InputError(f"{where}: a recipe is a mapping of keys; see `channelwise recipes rtn-w8a8` for one")
    try:
        return Recipe.model_validate(_tuples(data))
    except ValidationError as error:
        raise InputError(f"{where}: {_first_line(error)}") from error


def _tuples(data: dict[str, Any]) -> dict[str, Any]:
    """YAML has lists only; strict models want the tuple."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}


def _first_line(error: ValidationError) -> str:
    problems = []
    for problem in error.errors():
        place = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            known = Recipe.model_fields if len(problem["loc"]) == 1 else ()
            message = "unknown key" + _nearest(str(problem["loc"][-1]), known)
        problems.append(" ".join(f"{place}: {message}".split()))
    return "; ".join(problems)


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else ""
