"""`channelwise quantize`: a model and a text in, a quantized model out."""

from typing import TYPE_CHECKING, Any

from channelwise.cli.options import (
    AsJson,
    CalibrationLength,
    Data,
    Debug,
    Device,
    Model,
    Output,
    Overwrite,
    Recipe,
    Samples,
    Seed,
    Settings,
)

if TYPE_CHECKING:
    from channelwise.api import QuantizeResult


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
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Quantize a model by a recipe, into a new directory.

    After `import channelwise`, transformers loads it like any other model. Nothing is written unless all goes well.
    """
    from channelwise.cli.output import print_json, quiet_libraries
    from channelwise.cli.progress import reported_progress

    quiet_libraries()
    from channelwise import api
    from channelwise.recipe import load_recipe

    with reported_progress() as progress:
        result = api.quantize(
            model,
            recipe=load_recipe(recipe, settings or ()),
            data=data,
            output=output,
            samples=samples,
            length=length,
            seed=seed,
            device=device,
            overwrite=overwrite,
            progress=progress,
        )
    if as_json:
        print_json(_as_data(model, result))
        return
    _print_summary(model, result)


def _as_data(model: str, result: "QuantizeResult") -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "model": model,
        "recipe": result.recipe.name,
        "output": str(result.output),
        "seconds": result.record.seconds,
        "model_bytes_before": result.before.model_bytes,
        "model_bytes": result.after.model_bytes,
        "bits_per_weight": result.after.bits_per_weight,
        "sites": [asdict(site) for site in result.record.sites],
    }


def _print_summary(model: str, result: "QuantizeResult") -> None:
    from channelwise.cli.output import results_console
    from channelwise.report.summary import quantize_summary

    results_console().print(quantize_summary(model, result.recipe.name, str(result.output), result))
