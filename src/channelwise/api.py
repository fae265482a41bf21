"""The public API: quantize, load, evaluate, compare, inspect, profile, generate, export.

All input is checked before the long work begins.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from channelwise import __version__
from channelwise.checkpoint.exporting_directory import export_checkpoint
from channelwise.checkpoint.loader import load_checkpoint
from channelwise.comparison.comparing import compare as compare
from channelwise.engine.fit import check_plan
from channelwise.engine.joining import joined_world
from channelwise.engine.plan import WalkRecord
from channelwise.engine.walk import Progress, Surroundings, quantize_model
from channelwise.errors import InputError
from channelwise.evaluation.generation import Generation, generate_text
from channelwise.evaluation.measure import ImageSource, Questions, Results, TextSource, measure, prepare
from channelwise.evaluation.outliers import SiteOutliers, find_outliers
from channelwise.evaluation.profile import NamedPlan, profile_model
from channelwise.evaluation.profile_data import profile_data
from channelwise.evaluation.sizes import Sizes, model_sizes
from channelwise.evaluation.tasks import AskedTasks, ask_tasks, prepare_tasks, run_tasks
from channelwise.forecasting import Forecast
from channelwise.forecasting import forecast as forecast_order
from channelwise.model.batches import Data, read_data
from channelwise.model.blocks import find_blocks
from channelwise.opening import ModelSource, opened, opened_to_quantize
from channelwise.quantizing import Order, write_quantized
from channelwise.recipe import CalibrationRecipe, Recipe, RecipeSource, load_recipe
from channelwise.runtime.linear import QuantizedLinear

export = export_checkpoint

INSPECTED_SAMPLES = 32
PROFILED_RECIPE = "outliertune-w8a8"


@dataclass(frozen=True)
class QuantizeResult:
    """What was done, and the quantized model.

    skeleton: the model that was quantized; of one that was streamed its weights are on the meta device. record: every
    site, and the walk's wall time in seconds. output: where it was written, None if nowhere. resumed: how many stages
    an earlier run had finished.
    """

    skeleton: torch.nn.Module
    tokenizer: Any
    recipe: Recipe
    record: WalkRecord
    before: Sizes
    after: Sizes
    output: Path | None = None
    resumed: int = 0

    @cached_property
    def model(self) -> torch.nn.Module:
        """The quantized model; what was written block by block is loaded when it is first asked for."""
        in_place = any(isinstance(module, QuantizedLinear) for module in self.skeleton.modules())
        if self.output is None or (in_place and not self.resumed):
            return self.skeleton
        model: torch.nn.Module = load_checkpoint(self.output)[0]
        return model.to(next(iter(self.skeleton.buffers()), torch.empty(0)).device)


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
    resume: bool = False,
    activation_memory: int | None = None,
    progress: Progress | None = None,
) -> QuantizeResult:
    """Quantizes a model by a recipe and writes it to `output`, if given.

    model: a directory, a hub name, "demo", or a loaded module, which is changed in place (give its tokenizer, or its
    image processor, too). recipe: a name, a YAML file, its data, or a Recipe. data: a text file, a list of strings,
    token ids [N, L]; for image models a folder of images, a .npz with the array `images`, or pixel values [N, C, H, W].
    samples, length: of the calibration set; None takes the recipe's, cut to what there is.
    progress(label, done, total) is told of every block. Raises InputError, before anything is written.

    With `output`, a model in safetensors is never whole in memory, and what is finished outlives a killed run: resume
    goes on there. activation_memory: bytes of hidden states that stay in memory, None for all; the others are on disk.
    Processes that torchrun started share the work.

        result = quantize("my-model", recipe="outliertune-w6a6", data="text.txt", output="my-model-w6a6")
    """
    chosen = load_recipe(recipe)
    plan = chosen.to_plan()
    readable = read_data(data)
    if output is not None:
        order = Order(
            model=model,
            recipe=chosen,
            data=readable,
            output=Path(output),
            tokenizer=tokenizer,
            processor=processor,
            samples=samples,
            length=length,
            seed=seed,
            device=device,
            overwrite=overwrite,
            resume=resume,
            activation_memory=activation_memory,
            progress=progress,
        )
        with joined_world(device) as world:
            done = write_quantized(order, world)
        source = done.source
        return QuantizeResult(
            source.model, source.tokenizer, chosen, done.record, done.before, done.after, order.output, done.resumed
        )
    source = opened_to_quantize(model, device, tokenizer=tokenizer, processor=processor)
    check_plan(source.model, find_blocks(source.model), plan)
    batches = source.calibration(readable, chosen.calibration, samples, length, seed)
    before = model_sizes(source.model)
    around = Surroundings(activation_memory=activation_memory)
    record = quantize_model(source.model, batches, plan, seed=seed, progress=progress, surroundings=around)
    return QuantizeResult(source.model, source.tokenizer, chosen, record, before, model_sizes(source.model))


def forecast(
    model: str | Path,
    *,
    recipe: RecipeSource,
    data: Data,
    output: str | Path,
    tokenizer: Any = None,
    samples: int | None = None,
    length: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    overwrite: bool = False,
    resume: bool = False,
    activation_memory: int | None = None,
    progress: Progress | None = None,
) -> Forecast:
    """What `quantize` would take with the same arguments: blocks, bytes, peak memory, time.

    The first block is really quantized; nothing is kept. Raises InputError as `quantize` does.
    """
    order = Order(
        model=model,
        recipe=load_recipe(recipe),
        data=read_data(data),
        output=Path(output),
        tokenizer=tokenizer,
        samples=samples,
        length=length,
        seed=seed,
        device=device,
        overwrite=overwrite,
        resume=resume,
        activation_memory=activation_memory,
        progress=progress,
    )
    with joined_world(device) as world:
        return forecast_order(order, world)


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
    tasks: str | Sequence[str] | None = None,
    task_data: str | Path | None = None,
    limit: int | None = None,
    fewshot: int | None = None,
    batch: int | None = None,
    tokenizer: Any = None,
    processor: Any = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Results:
    """Measures a model, quantized or not: perplexity, embeddings against the original's, accuracy, tasks.

    length: tokens of a window, None takes 512 or the model's limit. embeddings: texts, with labels for the linear
    probe. classification: a .tsv with the columns text and label. images: a folder with a sub-folder for each label, or
    a .npz with the arrays images and labels; processor: of a loaded image model. against: the floating-point original.
    tasks: names of lm-evaluation-harness, which scores them; task_data: a folder with NAME.jsonl for each, in place of
    the hub; limit: documents of each; fewshot: examples before each question, None takes the task's; batch: rows that
    run together, None chooses. progress(label, done, total) is told how far the tasks are.

    Returns perplexity, tokens, length, seconds, model_bytes, bits_per_weight; with embeddings also cosine_mean,
    cosine_min, probe_accuracy, probe_accuracy_fp; with classification or images items, accuracy, and with `against`
    accuracy_fp, agreement: the share of the original's answers; with tasks {"tasks": {name: {"acc": …, "acc_stderr": …,
    …, "documents": …, "cut": …}}}, see `evaluation.tasks.run_tasks`. Raises InputError.
    """
    if embeddings is not None and against is None:
        raise InputError("--embeddings compares with the floating-point original; name it with --against FP_MODEL")
    report = progress or (lambda label, done, total: None)
    asked = _asked_tasks(report, tasks, task_data, limit=limit, fewshot=fewshot, batch=batch)
    source = opened(model, device, tokenizer=tokenizer, processor=processor, allow_quantized=True)
    questions = Questions()
    if asked is None or any(given is not None for given in (perplexity, embeddings, classification, images)):
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
    prepared = [] if asked is None else prepare_tasks(asked, source.model, source.tokenizer)
    if against is not None:
        questions = questions.against(opened(against, device, allow_quantized=True).model)
    results = measure(source.model, questions)
    if asked is None:
        return results
    scores = run_tasks(source.model, source.tokenizer, asked, prepared, report)
    return {**results, "seconds": results["seconds"] + scores.seconds, "tasks": scores.results}


def _asked_tasks(
    report: Progress, names: str | Sequence[str] | None, folder: str | Path | None, **options: int | None
) -> AskedTasks | None:
    """None where no tasks are named. Raises InputError for options that go with tasks without any."""
    if names is None:
        if folder is not None or any(value is not None for value in options.values()):
            raise InputError("--task-data, --limit, --fewshot and --batch go with --tasks; name the tasks")
        return None
    report("reading the definitions of the tasks", 0, 1)
    return ask_tasks(names, folder, **options)


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


def profile(
    model: ModelSource,
    *,
    data: Data,
    recipe: RecipeSource | None = PROFILED_RECIPE,
    tokenizer: Any = None,
    processor: Any = None,
    samples: int | None = None,
    length: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> tuple[tuple[SiteOutliers, ...], dict[str, Any]]:
    """Every channel of every site, before and after a recipe's transform, and what quantization would cost each layer.

    Returns what `inspect` does, and the profile as plain data (`evaluation.profile_data`), of which
    `report.page.inspection.write_inspection_page` makes a page. recipe: None leaves the transform out. samples: None
    takes 32. Raises InputError.
    """
    chosen = None if recipe is None else load_recipe(recipe)
    plan = None if chosen is None else NamedPlan(chosen.name, chosen.to_plan())
    readable = read_data(data)
    source = opened_to_quantize(model, device, tokenizer=tokenizer, processor=processor)
    batches = source.calibration(readable, CalibrationRecipe(samples=INSPECTED_SAMPLES), samples, length, seed)
    sites = profile_model(source.model, batches, plan, progress)
    settings = {
        "data": str(getattr(readable, "source", data)),
        "samples": sum(len(next(iter(batch.values()))) for batch in batches),
        "seed": seed,
        "device": device,
        "version": __version__,
    }
    name = None if plan is None else plan.name
    told = profile_data(source.name(), source.model, sites, recipe=name, settings=settings)
    return tuple(site.outliers for site in sites), told


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
