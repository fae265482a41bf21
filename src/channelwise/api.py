"""The public API: quantize, load, evaluate, compare. All input is checked before the long work begins."""

import copy
import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from channelwise.checkpoint.loader import is_checkpoint, load_checkpoint
from channelwise.checkpoint.writer import check_output, save_checkpoint
from channelwise.engine.plan import WalkRecord
from channelwise.engine.walk import check_plan, quantize_model
from channelwise.errors import InputError
from channelwise.evaluation.generation import Generation, generate_text
from channelwise.evaluation.measure import Results, TextSource, measure, prepare
from channelwise.evaluation.outliers import SiteOutliers, find_outliers
from channelwise.evaluation.sizes import Sizes, model_sizes
from channelwise.model.batches import Batch, Data, accepted, calibration_batches, length_limit, window_length
from channelwise.model.blocks import find_blocks
from channelwise.model.experts import unfuse_experts
from channelwise.model.loading import load_model
from channelwise.model.texts import read_texts
from channelwise.recipe import CalibrationRecipe, Recipe, load_recipe

ModelSource = str | Path | torch.nn.Module
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
    samples: int | None = None,
    length: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> QuantizeResult:
    """Quantizes a model by a recipe and writes it to `output`, if given.

    model: a directory, a hub name, "demo", or a loaded module, which is changed in place (give its tokenizer too).
    recipe: a name, a YAML file, its data, or a Recipe. data: a text file, a list of strings, token ids [N, L], or pixel
    values [N, C, H, W]. samples, length: of the calibration set; None takes the recipe's, cut to what there is.
    progress(label, done, total) is told of every block. Raises InputError, before anything is written.

        result = quantize("my-model", recipe="outliertune-w6a6", data="text.txt", output="my-model-w6a6")
    """
    chosen = load_recipe(recipe)
    plan = chosen.to_plan()
    if output is not None:
        check_output(Path(output), overwrite)
    readable = _read(data)
    loaded, tokenizer = _opened_to_quantize(model, tokenizer, device)
    check_plan(loaded, find_blocks(loaded), plan)
    batches = _calibration(loaded, tokenizer, readable, chosen.calibration, samples, length, seed)
    before = model_sizes(loaded)
    record = quantize_model(loaded, batches, plan, seed=seed, progress=progress)
    if output is not None:
        save_checkpoint(
            loaded,
            tokenizer,
            Path(output),
            recipe=chosen.model_dump(mode="json"),
            source_name=_name(model),
            record=asdict(record),
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
    against: ModelSource | None = None,
    tokenizer: Any = None,
    device: str = "cpu",
) -> Results:
    """Measures a model, quantized or not: perplexity on a text, sentence embeddings against the original's.

    length: tokens of a window, None takes 512 or the model's limit. embeddings: texts, with labels for the linear
    probe; against: the floating-point original. Returns perplexity, tokens, length, seconds, model_bytes,
    bits_per_weight; with embeddings also cosine_mean, cosine_min, probe_accuracy, probe_accuracy_fp. Raises InputError.
    """
    if embeddings is not None and against is None:
        raise InputError("--embeddings compares with the floating-point original; name it with --against FP_MODEL")
    loaded, tokenizer = _opened(model, tokenizer, device, allow_quantized=True)
    questions = prepare(loaded, tokenizer, perplexity=perplexity, length=length, embeddings=embeddings)
    if against is not None:
        questions = questions.against(_opened(against, None, device, allow_quantized=True)[0])
    return measure(loaded, questions)


def compare(
    model: ModelSource,
    *,
    recipes: Sequence[RecipeSource],
    data: Data,
    perplexity: TextSource | None = None,
    embeddings: TextSource | None = None,
    tokenizer: Any = None,
    samples: int | None = None,
    length: int | None = None,
    perplexity_length: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Quantizes a copy of the model by each recipe and measures it beside the floating-point model.

    Returns {"fp": {…}, "recipes": {name: {…, "quantize_seconds": …}}} with the keys of `evaluate` and
    perplexity_ratio, the perplexity over the floating-point one's. Writes nothing. Raises InputError before the long
    work for a recipe that does not fit the model.
    """
    chosen = _distinct([load_recipe(recipe) for recipe in recipes])
    readable = _read(data)
    loaded, tokenizer = _opened_to_quantize(model, tokenizer, device)
    questions = prepare(loaded, tokenizer, perplexity=perplexity, length=perplexity_length, embeddings=embeddings)
    for recipe in chosen.values():
        check_plan(loaded, find_blocks(loaded), recipe.to_plan())
    calibration = {
        name: _calibration(loaded, tokenizer, readable, recipe.calibration, samples, length, seed)
        for name, recipe in chosen.items()
    }
    report = progress or (lambda label, done, total: None)
    report("floating point", 0, 1)
    questions = questions.against(loaded)
    floating = _with_ratio(measure(loaded, questions), None)
    results = {}
    for name, recipe in chosen.items():
        results[name] = _measured(loaded, recipe, calibration[name], questions, floating, seed, _prefixed(report, name))
    return {"fp": floating, "recipes": results}


def inspect(
    model: ModelSource,
    *,
    data: Data,
    tokenizer: Any = None,
    samples: int | None = None,
    length: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> tuple[SiteOutliers, ...]:
    """Every site of a floating-point model: its outlier channels on the data, and what could be folded where.

    samples: None takes 32. length: tokens of a sample, None takes 512 or the model's limit. Raises InputError.
    """
    readable = _read(data)
    loaded, tokenizer = _opened_to_quantize(model, tokenizer, device)
    sampling = CalibrationRecipe(samples=INSPECTED_SAMPLES)
    return find_outliers(loaded, _calibration(loaded, tokenizer, readable, sampling, samples, length, seed), progress)


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
    loaded, tokenizer = _opened(model, tokenizer, device, allow_quantized=True)
    return generate_text(loaded, tokenizer, prompt, max_tokens=max_tokens, on_text=on_text)


def _measured(
    model: torch.nn.Module,
    recipe: Recipe,
    batches: list[Batch],
    questions: Any,
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


def _read(data: Data) -> Data:
    """Texts read and checked; tensors as they are."""
    return data if isinstance(data, torch.Tensor) else read_texts(data)


def _calibration(
    model: torch.nn.Module,
    tokenizer: Any,
    data: Data,
    defaults: CalibrationRecipe,
    samples: int | None,
    length: int | None,
    seed: int,
) -> list[Batch]:
    """Calibration batches on the model's device."""
    window = window_length(length, defaults.length, length_limit(model, tokenizer))
    count = defaults.samples if samples is None else samples
    batches = calibration_batches(data, tokenizer, model, samples=count, length=window, seed=seed)
    return [accepted(model, batch) for batch in batches]


def _opened_to_quantize(model: ModelSource, tokenizer: Any, device: str) -> tuple[torch.nn.Module, Any]:
    """The floating-point model with every expert a module of its own, and its tokenizer."""
    loaded, tokenizer = _opened(model, tokenizer, device)
    unfuse_experts(loaded)
    return loaded, tokenizer


def _opened(
    model: ModelSource, tokenizer: Any, device: str, *, allow_quantized: bool = False
) -> tuple[torch.nn.Module, Any]:
    """The model, in evaluation mode on the device, and its tokenizer."""
    place = _device(device)
    if isinstance(model, torch.nn.Module):
        return model.to(place).eval(), tokenizer
    if allow_quantized and is_checkpoint(Path(model)):
        loaded, own = load_checkpoint(Path(model))
    else:
        loaded, own = load_model(model, allow_quantized=allow_quantized)
    return loaded.to(place).eval(), own if tokenizer is None else tokenizer


def _device(name: str) -> torch.device:
    """The device of this name. Raises InputError if this machine does not have it."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device {name!r} cannot be used on this machine; give --device cpu, or cuda") from error
    return device


def _name(model: ModelSource) -> str:
    """What the model card calls the source."""
    if isinstance(model, torch.nn.Module):
        config = getattr(model, "config", None)
        return getattr(config, "_name_or_path", "") or type(model).__name__
    return str(model)
