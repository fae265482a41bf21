"""`compare`: recipes against the floating-point model and each other."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from channelwise.comparison.cache import opened_cache
from channelwise.comparison.facts import Settings, model_facts, recipe_facts, source_name
from channelwise.comparison.runs import Run, Runner
from channelwise.comparison.task_questions import TaskOptions, TaskQuestions
from channelwise.engine.fit import check_plan
from channelwise.engine.walk import Progress
from channelwise.errors import InputError
from channelwise.evaluation.layer_errors import SAMPLES, few_samples
from channelwise.evaluation.measure import ImageSource, Questions, Results, TextSource, prepare
from channelwise.model.batches import Data, read_data
from channelwise.model.blocks import find_blocks
from channelwise.opening import ModelSource, opened_to_quantize
from channelwise.recipe import CalibrationRecipe, Recipe, RecipeSource, load_recipe


def compare(
    model: ModelSource,
    *,
    recipes: Sequence[RecipeSource],
    data: Data,
    perplexity: TextSource | None = None,
    embeddings: TextSource | None = None,
    classification: TextSource | None = None,
    images: ImageSource | None = None,
    tasks: str | Sequence[str] | None = None,
    task_data: str | Path | None = None,
    limit: int | None = None,
    fewshot: int | None = None,
    batch: int | None = None,
    tokenizer: Any = None,
    processor: Any = None,
    samples: int | None = None,
    length: int | None = None,
    perplexity_length: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    skip_unfit: bool = False,
    speed: bool = False,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Quantizes a copy of the model by each recipe and measures it beside the floating-point model.

    perplexity to batch: what is measured, as in `evaluate`; perplexity_length: tokens of a window. speed: whether
    tokens per second are measured too, of models with their experts taken apart. cache: a folder where every recipe's
    run is kept, so that another comparison measures only what is new in it; None keeps and reads nothing. A run is
    found again if model, texts, recipe, seed, device, versions and the package's own source are the same.

    Returns, JSON-able, {"model", "settings", "fp": {…}, "recipes": {name: {…}}, "skipped": {name: reason}}. `fp` and
    every recipe have the keys of `evaluate`; perplexity_ratio, the perplexity over the floating-point one's;
    tokens_per_second and speed_over_fp, {"prefill", "decode"} each, None without `speed`; cached. A recipe has also
    quantize_seconds, summary, paper, weights_bits, inputs_bits; layers: of every quantized layer name, block, site,
    kind, shape, bits_per_weight, weights, inputs, choices, and relative_error, ‖Ŷ − Y‖² / ‖Y − mean‖² of its output on
    the original model's inputs (0 exact, 1 as bad as a constant); sites: the outliers of every site's input, and notes.

    Raises InputError before the long work for a recipe that does not fit the model, and naming the recipe where numbers
    do not stay finite; with skip_unfit such recipes are skipped, if another one fits. RuntimeError names it too.
    """
    chosen = _distinct([load_recipe(recipe) for recipe in recipes])
    kept = opened_cache(cache)
    asked = TaskOptions(tasks, task_data, limit, fewshot, batch).asked()
    readable = read_data(data)
    source = opened_to_quantize(model, device, tokenizer=tokenizer, processor=processor)
    skipped = _unfit(source.model, chosen, skip_unfit)
    fitting = {name: recipe for name, recipe in chosen.items() if name not in skipped}
    texts: dict[str, Any] = {"perplexity": perplexity, "embeddings": embeddings, "classification": classification}
    questions = Questions()
    if asked is None or images is not None or any(given is not None for given in texts.values()):
        settings: dict[str, Any] = {"length": perplexity_length, "find_processor": source.processor}
        questions = prepare(source.model, source.tokenizer, images=images, **texts, **settings)
    task_questions = TaskQuestions.of(asked, source.model, source.tokenizer)
    # Recipes that ask for the same samples share them.
    calibration = {
        defaults: source.calibration(readable, defaults, samples, length, seed)
        for defaults in {recipe.calibration for recipe in fitting.values()}
    }
    few = source.calibration(readable, CalibrationRecipe(), min(samples or SAMPLES, SAMPLES), length, seed)
    runner = Runner(source.model, questions, few_samples(few), seed, speed, kept, task_questions)
    report = progress or (lambda label, done, total: None)
    floating = runner.floating(report)
    runs: dict[str, Run] = {}
    for name, recipe in fitting.items():
        try:
            runs[name] = runner.recipe(recipe, calibration[recipe.calibration], report)
        except InputError as error:
            skipped[name] = str(error)
            if not skip_unfit or len(skipped) == len(chosen):
                raise
    text = None if perplexity is None else source_name(perplexity)
    told = Settings(
        source_name(data), samples, length, seed, device, text, None if text is None else questions.length, tasks, limit
    )
    return {
        "model": model_facts(source.model, source.name()),
        "settings": told.facts(),
        "fp": _told(floating, floating, speed),
        "recipes": {name: _told_of_recipe(run, floating, speed, fitting[name]) for name, run in runs.items()},
        "skipped": skipped,
    }


def _unfit(model: torch.nn.Module, recipes: Mapping[str, Recipe], skip: bool) -> dict[str, str]:
    """The recipes that do not fit the model, and why. Raises InputError for the first unless others are left to do."""
    found: dict[str, InputError] = {}
    blocks = find_blocks(model)
    for name, recipe in recipes.items():
        try:
            check_plan(model, blocks, recipe.to_plan())
        except InputError as error:
            found[name] = error
    if found and not (skip and len(found) < len(recipes)):
        raise next(iter(found.values()))
    return {name: str(error) for name, error in found.items()}


def _distinct(recipes: list[Recipe]) -> dict[str, Recipe]:
    """Recipes by name. Raises InputError for none, and for two of one name."""
    named = {recipe.name: recipe for recipe in recipes}
    if not recipes:
        raise InputError("no recipe to compare; give at least one, `channelwise recipes` lists them")
    if len(named) < len(recipes):
        raise InputError("two of the recipes have the same name; give each a name of its own")
    return named


def _told(run: Run, floating: Run, speed: bool) -> Results:
    """A run's figures. Those of speed are there where they were asked for, whatever the cache knows."""
    results: Results = dict(run.entry["results"])
    if results["perplexity"] is not None:
        results["perplexity_ratio"] = results["perplexity"] / floating.entry["results"]["perplexity"]
    found = run.entry["speed"] if speed else {"tokens_per_second": None, "speed_over_fp": None}
    return {**results, **found, "cached": run.cached}


def _told_of_recipe(run: Run, floating: Run, speed: bool, recipe: Recipe) -> Results:
    parts = {"layers": run.entry["layers"], "sites": run.entry["sites"]}
    return {**_told(run, floating, speed), **recipe_facts(recipe), "error": None, **parts}
