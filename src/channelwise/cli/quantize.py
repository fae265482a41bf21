"""`channelwise quantize`: a model and a text in, a quantized model out."""

from typing import TYPE_CHECKING, Any

from channelwise.cli.options import (
    ActivationMemory,
    AsJson,
    CalibrationLength,
    Data,
    Debug,
    Device,
    DryRun,
    Model,
    Output,
    Overwrite,
    Recipe,
    Resume,
    Samples,
    Seed,
    Settings,
)

if TYPE_CHECKING:
    from channelwise.api import Forecast, QuantizeResult

DEFAULT_ACTIVATION_MEMORY = "4GiB"


def quantize(
    model: Model,
    recipe: Recipe,
    data: Data,
    output: Output,
    settings: Settings = None,
    samples: Samples = None,
    length: CalibrationLength = None,
    seed: Seed = 0,
    device: Device = "cpu",
    overwrite: Overwrite = False,
    resume: Resume = False,
    dry_run: DryRun = False,
    activation_memory: ActivationMemory = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Quantize a model by a recipe, into a new directory.

    After `import channelwise`, transformers loads it like any other model. It appears when all has gone well; a run
    that was killed goes on with --resume. The model is read block by block, so it may be larger than memory.
    Several processes share the work: torchrun --nproc-per-node N -m channelwise quantize …
    """
    from channelwise.cli.output import print_json, quiet_libraries
    from channelwise.cli.progress import reported_progress
    from channelwise.cli.ranks import is_first
    from channelwise.cli.sizes import bytes_of

    quiet_libraries()
    from channelwise import api
    from channelwise.recipe import load_recipe

    memory = bytes_of(activation_memory or DEFAULT_ACTIVATION_MEMORY, "--activation-memory")
    with reported_progress(silent=not is_first()) as progress:
        do = api.forecast if dry_run else api.quantize
        result = do(
            model,
            recipe=load_recipe(recipe, settings or ()),
            data=data,
            output=output,
            samples=samples,
            length=length,
            seed=seed,
            device=device,
            overwrite=overwrite,
            resume=resume,
            activation_memory=memory,
            progress=progress,
        )
    if not is_first():
        return
    if isinstance(result, api.Forecast):
        _tell_plan(model, recipe, str(output), result, as_json)
    elif as_json:
        print_json(_as_data(model, result))
    else:
        _print_summary(model, result)


def _tell_plan(model: str, recipe: str, output: str, plan: "Forecast", as_json: bool) -> None:
    from dataclasses import asdict

    from channelwise.cli.output import print_json, results_console
    from channelwise.report.forecast import forecast_page

    if as_json:
        print_json({"model": model, "recipe": recipe, "output": output, **asdict(plan)})
    else:
        results_console().print(forecast_page(model, recipe, output, plan))


def _as_data(model: str, result: "QuantizeResult") -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "model": model,
        "recipe": result.recipe.name,
        "output": str(result.output),
        "seconds": result.record.seconds,
        "phases": result.record.phases,
        "resumed_stages": result.resumed,
        "model_bytes_before": result.before.model_bytes,
        "model_bytes": result.after.model_bytes,
        "bits_per_weight": result.after.bits_per_weight,
        "sites": [asdict(site) for site in result.record.sites],
    }


def _print_summary(model: str, result: "QuantizeResult") -> None:
    from channelwise.cli.output import results_console
    from channelwise.report.summary import quantize_summary

    results_console().print(quantize_summary(model, result.recipe.name, str(result.output), result))
