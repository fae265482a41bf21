"""`channelwise demo`: every recipe on the bundled model."""

from typing import Annotated

import typer

from channelwise.cli.compare import (
    CacheFolder,
    NoCache,
    Overwrite,
    ReportFile,
    Speed,
    cache_folder,
    check_report,
    show_comparison,
)
from channelwise.cli.options import AsJson, Debug, Seed

# Fewer than the recipes ask for, so that all of them are done in a few minutes on two cores.
SAMPLES = 16
SEARCH_TOKENS = 2048

Samples = Annotated[int, typer.Option("--samples", metavar="N", help="Calibration samples.")]


def demo(
    samples: Samples = SAMPLES,
    seed: Seed = 0,
    report: ReportFile = None,
    overwrite: Overwrite = False,
    speed: Speed = None,
    cache: CacheFolder = None,
    no_cache: NoCache = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Quantize the bundled model with every recipe, in one table.

    Calibrated on fewer samples, and searched on fewer tokens, than the recipes ask for: it takes a few minutes.
    """
    from channelwise.cli.output import quiet_libraries
    from channelwise.cli.progress import reported_progress

    check_report(report, overwrite)
    quiet_libraries()
    from channelwise.api import compare
    from channelwise.recipe import load_recipe, recipe_names

    with reported_progress() as progress:
        results = compare(
            "demo",
            recipes=[load_recipe(name, [f"search_tokens={SEARCH_TOKENS}"]) for name in recipe_names()],
            data="demo",
            perplexity="demo",
            samples=samples,
            seed=seed,
            speed=report is not None if speed is None else speed,
            cache=cache_folder(cache, no_cache),
            progress=progress,
        )
    show_comparison(results, report, as_json)
