"""Recipes: what to do with a model, as YAML, checked strictly. Unknown keys are errors."""

import difflib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from channelwise.engine.plan import Plan, SitePlan
from channelwise.errors import InputError
from channelwise.methods import METHODS
from channelwise.methods.site import Method
from channelwise.numerics.granularity import Granularity
from channelwise.numerics.grids import IntegerGrid
from channelwise.runtime.scheme import InputScheme, WeightScheme

Bits = Annotated[int, Field(ge=2, le=8)]
Count = Annotated[int, Field(ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class WeightRecipe(_Strict):
    """Grid and granularity of the weights; `group` needs group_size, and runs along a row (`oc`) or a column (`ic`)."""

    bits: Bits
    symmetric: bool = True
    granularity: Literal["tensor", "output_channel", "group"] = "output_channel"
    group_size: Count | None = None
    direction: Literal["oc", "ic"] = "oc"

    @model_validator(mode="after")
    def _group_size_where_it_belongs(self) -> Self:
        if (self.granularity == "group") != (self.group_size is not None):
            raise ValueError("group_size goes with granularity: group, and only with it")
        return self

    def scheme(self) -> WeightScheme:
        """The same as the numerics see it."""
        kinds = {"tensor": "tensor", "output_channel": "row", "group": f"{_GROUP_AXIS[self.direction]}_group"}
        granularity = Granularity(kinds[self.granularity], self.group_size)  # type: ignore[arg-type]
        return WeightScheme(IntegerGrid(self.bits, self.symmetric), granularity)


_GROUP_AXIS = {"oc": "row", "ic": "column"}


class InputRecipe(_Strict):
    """Grid and granularity of inputs: static per `tensor`, dynamic per `token`, static per `channel` (OutlierTune).

    clip: `search` cuts a static range to the share of it that changes the site's output least.
    """

    bits: Bits
    symmetric: bool = True
    granularity: Literal["tensor", "token", "channel"] = "tensor"
    clip: Literal["none", "search"] = "none"

    @model_validator(mode="after")
    def _clip_where_ranges_are_static(self) -> Self:
        if self.clip == "search" and self.granularity == "token":
            raise ValueError("clip: search goes with static inputs, not with granularity: token")
        return self

    def scheme(self) -> InputScheme:
        """The same as the runtime sees it: per-channel steps are a transform, so they are static there."""
        return InputScheme(IntegerGrid(self.bits, self.symmetric), "token" if self.granularity == "token" else "static")


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
        return self

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
    """A recipe. `stream` sites read the residual stream (q,k,v; fc1; gate,up), `inner` ones do not (out; down)."""

    name: str
    summary: str
    paper: str | None = None
    weights: WeightRecipe
    stream: SiteRecipe
    inner: SiteRecipe
    attention_bits: Bits | None = None
    exclude: tuple[str, ...] = ()
    sequential: bool = True
    search_tokens: Count = 4096
    calibration: CalibrationRecipe = CalibrationRecipe()

    def to_plan(self) -> Plan:
        """The recipe as the engine takes it."""
        return Plan(
            weights=self.weights.scheme(),
            stream=_site_plan(self.stream),
            inner=_site_plan(self.inner),
            exclude=self.exclude,
            sequential=self.sequential,
            search_tokens=self.search_tokens,
            attention_bits=self.attention_bits,
        )


def _site_plan(site: SiteRecipe) -> SitePlan:
    if site.inputs is None:
        return SitePlan(site.build_method(), None)
    return SitePlan(site.build_method(), site.inputs.scheme(), search_clip=site.inputs.clip == "search")


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
