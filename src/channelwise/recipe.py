"""Recipes: what to do with a model, as YAML, checked strictly. Unknown keys are errors."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import ValidationError, model_validator

from channelwise.engine.plan import Plan
from channelwise.errors import InputError
from channelwise.methods.imported import is_import_path, method_digest
from channelwise.recipe_parts import Bits, Count, EmbeddingRecipe, SiteRecipe, Strict, WeightRecipe, nearest


class CalibrationRecipe(Strict):
    """How many samples of how many tokens; a shorter text or model limit gives fewer."""

    samples: Count = 128
    length: Count = 512


class Recipe(Strict):
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
            stream=self.stream.plan(),
            inner=self.inner.plan(),
            head=None if self.head is None else self.head.plan(),
            embedding=None if self.embedding is None else self.embedding.plan(),
            exclude=self.exclude,
            sequential=self.sequential,
            search_tokens=self.search_tokens,
            calibrate_on=self.calibrate_on,
            objective=self.objective,
            attention_bits=self.attention_bits,
        )

    def own_methods(self) -> dict[str, str]:
        """Digests of the files of methods from outside the package, by import path: what the recipe itself omits."""
        names = {str(site.method.get("name")) for site in (self.stream, self.inner, self.head) if site is not None}
        return {name: method_digest(name) for name in sorted(names) if is_import_path(name)}


RecipeSource = str | Path | dict[str, Any] | Recipe


def recipe_names() -> tuple[str, ...]:
    """The names of the recipes that come with the package, `METHOD-wN[aM][gG]`, the widest first and then by method."""
    folder = resources.files("channelwise.recipes")
    names = [f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")]

    def order(name: str) -> tuple[int, int, str]:
        method, _, widths = name.rpartition("-w")
        bits, _, inputs = widths.partition("g")[0].partition("a")
        return (-int(bits), -int(inputs or 16), method)

    return tuple(sorted(names, key=order))


def recipe_text(name: str) -> str:
    """The YAML of a recipe of the package. Raises InputError with the nearest names if there is none."""
    if name not in recipe_names():
        hint = nearest(name, recipe_names()) or "; `channelwise recipes` lists them"
        raise InputError(f"no recipe is called {name!r}{hint}")
    return (resources.files("channelwise.recipes") / f"{name}.yaml").read_text(encoding="utf-8")


def load_recipe(source: RecipeSource, settings: Sequence[str] = ()) -> Recipe:
    """A recipe by name, from a .yaml file, or from data. Raises InputError, one line, for anything that is wrong.

    settings: KEY=VALUE each, which replace or add an entry: keys with dots, values as in YAML (`head=null`,
    `stream.method.rounds=5`).
    """
    if isinstance(source, Recipe) and not settings:
        return source
    if isinstance(source, Recipe):
        data, where = source.model_dump(mode="json"), source.name
    elif isinstance(source, dict):
        data, where = source, "recipe"
    else:
        data, where = _data_of(source), str(source)
    for setting in settings:
        data = _with_setting(data, setting)
    return _validated(data, where)


def _data_of(source: str | Path) -> Any:
    """The data of a recipe of the package, or of a YAML file."""
    path = Path(source)
    if path.suffix not in (".yaml", ".yml"):
        return _parsed(recipe_text(str(source)), str(source))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot read the recipe: {error}") from error
    return _parsed(text, str(path))


def _with_setting(data: Any, setting: str) -> Any:
    """The data with one entry replaced or added. Raises InputError for what is not KEY=VALUE or leads nowhere."""
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set {setting}: give KEY=VALUE, such as head=null or stream.inputs.bits=8")
    value = _parsed(text, f"--set {setting}")

    def replaced(entries: Any, parts: list[str]) -> dict[str, Any]:
        if not isinstance(entries, dict):
            raise InputError(f"--set {setting}: {key} is no entry of a mapping in the recipe; see channelwise recipes")
        new = value if len(parts) == 1 else replaced(entries.get(parts[0], {}), parts[1:])
        return {**entries, parts[0]: new}

    return replaced(data, key.strip().split("."))


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
            message = "unknown key" + nearest(str(problem["loc"][-1]), known)
        problems.append(" ".join(f"{place}: {message}".split()))
    return "; ".join(problems)
