"""`channelwise compare`: some recipes side by side."""

from typing import Annotated

import typer

from channelwise.cli.options import (
    AsJson,
    CalibrationLength,
    ClassificationFile,
    Data,
    Debug,
    Device,
    EmbeddingsFile,
    ImageFiles,
    Model,
    PerplexityText,
    Samples,
    Seed,
    Settings,
)

Recipes = Annotated[
    str, typer.Option("--recipes", metavar="A,B,C", help="Recipes, or all that fit the model.", show_default=False)
]
PerplexityLength = Annotated[
    int | None,
    typer.Option("--perplexity-length", metavar="L", help="Tokens of a window. Default: 512 or the model's limit."),
]


def compare(
    model: Model,
    recipes: Recipes,
    data: Data,
    settings: Settings = None,
    perplexity: PerplexityText = None,
    embeddings: EmbeddingsFile = None,
    classification: ClassificationFile = None,
    images: ImageFiles = None,
    samples: Samples = None,
    length: CalibrationLength = None,
    perplexity_length: PerplexityLength = None,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show several recipes side by side; writes nothing.

    A copy of the model is quantized by each recipe, and its quality, size and time shown beside the original's.
    """
    from channelwise.cli.output import print_json, quiet_libraries, results_console
    from channelwise.cli.progress import reported_progress

    quiet_libraries()
    from channelwise import api
    from channelwise.recipe import load_recipe, recipe_names
    from channelwise.report.tables import comparison_table, legend

    names = recipe_names() if recipes == "all" else [name.strip() for name in recipes.split(",") if name.strip()]
    with reported_progress() as progress:
        results = api.compare(
            model,
            recipes=[load_recipe(name, settings or ()) for name in names],
            data=data,
            perplexity=perplexity,
            embeddings=embeddings,
            classification=classification,
            images=images,
            samples=samples,
            length=length,
            perplexity_length=perplexity_length,
            seed=seed,
            device=device,
            skip_unfit=recipes == "all",
            progress=progress,
        )
    if as_json:
        print_json(results)
        return
    console = results_console()
    console.print(comparison_table(results, console.width))
    console.print(f"\n{legend(results, console.width)}", style="dim")
    for name, reason in results["skipped"].items():
        console.print(f"{name} left out: {reason}", style="dim", highlight=False)
