"""`channelwise compare`: some recipes side by side."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from channelwise.cli.evaluate import Batch, FewShot, Limit, TaskData, Tasks
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
ReportFile = Annotated[
    Path | None,
    typer.Option("--report", metavar="FILE.html", help="Write a page: bits against quality, every layer's error."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace FILE.html if it exists.")]
Speed = Annotated[
    bool | None,
    typer.Option("--speed/--no-speed", help="Measure tokens per second too. Default: with --report."),
]
CacheFolder = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        metavar="DIR",
        envvar="CHANNELWISE_CACHE",
        help="Where finished runs are kept, so that only new ones are measured. Default: the user's cache folder.",
    ),
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Measure everything anew, and keep nothing.")]


def compare(
    model: Model,
    recipes: Recipes,
    data: Data,
    settings: Settings = None,
    perplexity: PerplexityText = None,
    embeddings: EmbeddingsFile = None,
    classification: ClassificationFile = None,
    images: ImageFiles = None,
    tasks: Tasks = None,
    task_data: TaskData = None,
    limit: Limit = None,
    fewshot: FewShot = None,
    batch: Batch = None,
    samples: Samples = None,
    length: CalibrationLength = None,
    perplexity_length: PerplexityLength = None,
    seed: Seed = 0,
    device: Device = "cpu",
    report: ReportFile = None,
    overwrite: Overwrite = False,
    speed: Speed = None,
    cache: CacheFolder = None,
    no_cache: NoCache = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show several recipes side by side.

    A copy of the model is quantized by each recipe, and its quality, size and time shown beside the original's. What
    was measured before, of the same model, recipe, texts and machine, is taken from the cache: another recipe costs
    one recipe, and an interrupted comparison goes on where it was.
    """
    from channelwise.cli.output import quiet_libraries
    from channelwise.cli.progress import reported_progress

    check_report(report, overwrite)
    quiet_libraries()
    from channelwise import api
    from channelwise.recipe import load_recipe, recipe_names

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
            tasks=tasks,
            task_data=task_data,
            limit=limit,
            fewshot=fewshot,
            batch=batch,
            samples=samples,
            length=length,
            perplexity_length=perplexity_length,
            seed=seed,
            device=device,
            skip_unfit=recipes == "all",
            speed=report is not None if speed is None else speed,
            cache=cache_folder(cache, no_cache),
            progress=progress,
        )
    show_comparison(results, report, as_json)


def check_report(report: Path | None, overwrite: bool) -> None:
    """Raises InputError for a page that could not be written after the long work."""
    from channelwise.report.page.files import check_page_path

    if report is not None:
        check_page_path(report, overwrite)


def cache_folder(given: Path | None, no_cache: bool) -> Path | None:
    """The folder of finished runs, the user's own unless one is given; None for no cache."""
    from channelwise.comparison.cache import user_cache

    if no_cache:
        return None
    return user_cache() if given is None else given


def show_comparison(results: dict[str, Any], report: Path | None, as_json: bool) -> None:
    """The results on standard output, then as a page; a page that fails does not take the results with it."""
    from channelwise.cli.output import print_json

    if as_json:
        print_json(results)
    else:
        _print_tables(results)
    if report is not None:
        from channelwise.cli.output import messages_console
        from channelwise.report.format import short_path
        from channelwise.report.page.comparison import write_comparison_page

        write_comparison_page(results, report)
        messages_console().print(f"written to {short_path(report)}", style="dim", markup=False, soft_wrap=True)


def _print_tables(results: Mapping[str, Any]) -> None:
    from channelwise.cli.output import results_console
    from channelwise.report.tables import comparison_table, legend, remarks

    console = results_console()
    console.print(comparison_table(results, console.width))
    console.print(f"\n{legend(results, console.width)}", style="dim")
    for remark in remarks(results):
        console.print(remark, style="dim", markup=False)
