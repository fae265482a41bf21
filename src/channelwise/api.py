"""The public API: quantize, load, evaluate, compare. All input is checked before the long work begins."""

import copy
import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from channelwise.checkpoint.loader import load_checkpoint
from channelwise.checkpoint.writer import check_output, save_checkpoint
from channelwise.engine.plan import WalkRecord
from channelwise.engine.walk import check_plan, quantize_model
from channelwise.errors import InputError
from channelwise.evaluation.generation import Generation, generate_text
from channelwise.evaluation.measure import ImageSource, Questions, Results, TextSource, measure, prepare
from channelwise.evaluation.outliers import SiteOutliers, find_outliers
from channelwise.evaluation.sizes import Sizes, model_sizes
from channelwise.model.batches import Batch, Data, read_data
from channelwise.model.blocks import find_blocks
from channelwise.opening import ModelSource, opened, opened_to_quantize
from channelwise.recipe import CalibrationRecipe, Recipe, load_recipe

RecipeSource = str | Path | dict[str, Any] | Recipe
Progress = Callable[[str, int, int], None]

INSPECTED_SAMPLES = 32


@dataclass(frozen=True)
class QuantizeResult:
    """A quantized model and what was done.

    output: where it was written, None if nowhere. record: every site, and the walk's wall time in seconds.
    """

    model: torch.nn.Module
    tokenizer: Any
    recipe: Recipe
    record: WalkRecord
    before: Sizes
    after: Sizes
    output: Path | None = None


def quantize(
    model: ModelSource,
    *,
    recipe: RecipeSource,
    data: Data,
    output: str | Path | None = None,
    tokenizer: Any = None,
    processor: Any = None,
    samples: int | None = None,
    length: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> QuantizeResult:
    """Quantizes a model by a recipe and writes it to `output`, if given.

    model: a directory, a hub name, "demo", or a loaded module, which is changed in place (give its tokenizer, or its
    image processor, too). recipe: a name, a YAML file, its data, or a Recipe. data: a text file, a list of strings,
    token ids [N, L]; for image models a folder of images, a .npz with the array `images`, or pixel values [N, C, H, W].
    samples, length: of the calibration set; None takes the recipe's, cut to what there is.
    progress(label, done, total) is told of every block. Raises InputError, before anything is written.

        result = quantize("my-model", recipe="outliertune-w6a6", data="text.txt", output="my-model-w6a6")
    """
    chosen = load_recipe(recipe)
    plan = chosen.to_plan()
    if output is not None:
        check_output(Path(output), overwrite)
    readable = read_data(data)
    source = opened_to_quantize(model, device, tokenizer=tokenizer, processor=processor)
    loaded, tokenizer = source.model, source.tokenizer
    check_plan(loaded, find_blocks(loaded), plan)
    batches = source.calibration(readable, chosen.calibration, samples, length, seed)
    before = model_sizes(loaded)
    record = quantize_model(loaded, batches, plan, seed=seed, progress=progress)
    if output is not None:
        save_checkpoint(
            loaded,
            tokenizer,
            Path(output),
            recipe=chosen.model_dump(mode="json"),
            source_name=source.name(),
            record=_stored(record),
            overwrite=overwrite,
        )
    where = None if output is None else Path(output)
    return QuantizeResult(loaded, tokenizer, chosen, record, before, model_sizes(loaded), where)


def load(directory: str | Path) -> tuple[torch.nn.Module, Any]:
    """The model and tokenizer (or None) that `quantize` wrote. Raises InputError for any other directory."""
    return load_checkpoint(Path(directory))


def evaluate(
    model: ModelSource,
    *,
    perplexity: TextSource | None = None,
    length: int | None = None,
    embeddings: TextSource | None = None,
    classification: TextSource | None = None,
    images: ImageSource | None = None,
    against: ModelSource | None = None,
    tokenizer: Any = None,
    processor: Any = None,
    device: str = "cpu",
) -> Results:
    """Measures a model, quantized or not: perplexity, embeddings against the original's, a classifier's accuracy.

    length: tokens of a window, None takes 512 or the model's limit. embeddings: texts, with labels for the linear
    probe. classification: a .tsv with the columns text and label. images: a folder with a sub-folder for each label, or
    a .npz with the arrays images and labels; processor: of a loaded image model. against: the floating-point original.
    Returns perplexity, tokens, length, seconds, model_bytes, bits_per_weight; with embeddings also cosine_mean,
    cosine_min, probe_accuracy, probe_accuracy_fp; with classification or images items, accuracy, and with `against`
    accuracy_fp, agreement: the share of the original's answers. Raises InputError.
    """
    if embeddings is not None and against is None:
        raise InputError("--embeddings compares with the floating-point original; name it with --against FP_MODEL")
    source = opened(model, device, tokenizer=tokenizer, processor=processor, allow_quantized=True)
    questions = prepare(
        source.model,
        source.tokenizer,
        perplexity=perplexity,
        length=length,
        embeddings=embeddings,
        classification=classification,
        images=images,
        find_processor=source.processor,
    )
    if against is not None:
        questions = questions.against(opened(against, device, allow_quantized=True).model)
    return measure(source.model, questions)


def _stored(record: WalkRecord) -> dict[str, Any]:
    """What a checkpoint keeps of the record: all but the time, so that the same work gives the same files."""
    return {name: value for name, value in asdict(record).items() if name != "seconds"}


def compare(
    model: ModelSource,
    *,
    recipes: Sequence[RecipeSource],
    data: Data,
    perplexity: TextSource | None = None,
    embeddings: TextSource | None = None,
    classification: TextSource | None = None,
    images: ImageSource | None = None,
    tokenizer: Any = None,
    processor: Any = None,
    samples: int | None = None,
    length: int | None = None,
    perplexity_length: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    skip_unfit: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Quantizes a copy of the model by each recipe and measures it beside the floating-point model.

    Returns {"fp": {…}, "recipes": {name: {…, "quantize_seconds": …}}, "skipped": {name: reason}} with the keys of
    `evaluate` and perplexity_ratio, the perplexity over the floating-point one's. Writes nothing. Raises InputError
    before the long work for a recipe that does not fit the model; with skip_unfit it is skipped, if another one fits.
    """
    chosen = _distinct([load_recipe(recipe) for recipe in recipes])
    readable = read_data(data)
    source = opened_to_quantize(model, device, tokenizer=tokenizer, processor=processor)
    loaded = source.model
    unfit = _unfit(loaded, chosen)
    if unfit and not (skip_unfit and len(unfit) < len(chosen)):
        raise next(iter(unfit.values()))
    chosen = {name: recipe for name, recipe in chosen.items() if name not in unfit}
    questions = prepare(
        loaded,
        source.tokenizer,
        perplexity=perplexity,
        length=perplexity_length,
        embeddings=embeddings,
        classification=classification,
        images=images,
        find_processor=source.processor,
    )
    # Recipes that ask for the same samples share them.
    calibration = {
        defaults: source.calibration(readable, defaults, samples, length, seed)
        for defaults in {recipe.calibration for recipe in chosen.values()}
    }
    report = progress or (lambda label, done, total: None)
    report("floating point", 0, 1)
    questions = questions.against(loaded)
    floating = _with_ratio(measure(loaded, questions), None)
    results = {}
    for name, recipe in chosen.items():
        batches = calibration[recipe.calibration]
        results[name] = _measured(loaded, recipe, batches, questions, floating, seed, _prefixed(report, name))
    return {"fp": floating, "recipes": results, "skipped": {name: str(error) for name, error in unfit.items()}}


def _unfit(model: torch.nn.Module, recipes: Mapping[str, Recipe]) -> dict[str, InputError]:
    """The recipes that do not fit the model, and why."""
    found, blocks = {}, find_blocks(model)
    for name, recipe in recipes.items():
        try:
            check_plan(model, blocks, recipe.to_plan())
        except InputError as error:
            found[name] = error
    return found


def inspect(
    model: ModelSource,
    *,
    data: Data,
    tokenizer: Any = None,
    processor: Any = None,
    samples: int | None = None,
    length: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> tuple[SiteOutliers, ...]:
    """Every site of a floating-point model: its outlier channels on the data, and what could be folded where.

    samples: None takes 32. length: tokens of a sample, None takes 512 or the model's limit. Raises InputError.
    """
    readable = read_data(data)
    source = opened_to_quantize(model, device, tokenizer=tokenizer, processor=processor)
    batches = source.calibration(readable, CalibrationRecipe(samples=INSPECTED_SAMPLES), samples, length, seed)
    return find_outliers(source.model, batches, progress)


def generate(
    model: ModelSource,
    prompt: str,
    *,
    max_tokens: int = 64,
    tokenizer: Any = None,
    device: str = "cpu",
    on_text: Callable[[str], None] | None = None,
) -> Generation:
    """Lets a model, quantized or not, go on from a prompt, greedily; on_text gets the text in pieces as it comes.

    Raises InputError for a model that does not generate text, and for a prompt that is empty or too long for it.
    """
    source = opened(model, device, tokenizer=tokenizer, allow_quantized=True)
    return generate_text(source.model, source.tokenizer, prompt, max_tokens=max_tokens, on_text=on_text)


def _measured(
    model: torch.nn.Module,
    recipe: Recipe,
    batches: list[Batch],
    questions: Questions,
    floating: Results,
    seed: int,
    progress: Progress,
) -> Results:
    """One recipe's results, on a copy of the model that is gone afterwards."""
    copied = copy.deepcopy(model)
    record = quantize_model(copied, batches, recipe.to_plan(), seed=seed, progress=progress)
    results = _with_ratio(measure(copied, questions), floating)
    del copied
    gc.collect()
    return {**results, "quantize_seconds": record.seconds}


def _with_ratio(results: Results, floating: Results | None) -> Results:
    """The results with perplexity_ratio where a perplexity was measured; the reference itself has 1."""
    if results["perplexity"] is None:
        return results
    reference = (floating or results)["perplexity"]
    return {**results, "perplexity_ratio": results["perplexity"] / reference}


def _distinct(recipes: list[Recipe]) -> dict[str, Recipe]:
    """Recipes by name. Raises InputError for none, and for two of one name."""
    named = {recipe.name: recipe for recipe in recipes}
    if not recipes:
        raise InputError("no recipe to compare; give at least one, `channelwise recipes` lists them")
    if len(named) < len(recipes):
        raise InputError("two of the recipes have the same name; give each a name of its own")
    return named


def _prefixed(progress: Progress, name: str) -> Progress:
    """Progress whose labels begin with the recipe's name."""
    return lambda label, done, total: progress(f"{name}: {label}", done, total)
