"""`channelwise demo`: every recipe on the bundled model."""

from typing import Annotated

import typer

from channelwise.cli.options import AsJson, Debug, Seed

# Fewer than the recipes ask for, so that all of them are done in a few minutes on two cores.
SAMPLES = 32

Samples = Annotated[int, typer.Option("--samples", metavar="N", help="Calibration samples.")]


def demo(samples: Samples = SAMPLES, seed: Seed = 0, as_json: AsJson = False, debug: Debug = False) -> None:
    """Quantize the bundled model with every recipe, in one table."""
    from channelwise.cli.output import print_json, quiet_libraries, results_console
    from channelwise.cli.progress import reported_progress

    quiet_libraries()
    from channelwise.api import compare
    from channelwise.recipe import recipe_names
    from channelwise.report.tables import comparison_table, legend

    with reported_progress() as progress:
        results = compare(
            "demo",
            recipes=recipe_names(),
            data="demo",
            perplexity="demo",
            samples=samples,
            seed=seed,
            progress=progress,
        )
    if as_json:
        print_json(results)
        return
    console = results_console()
    console.print(comparison_table(results, console.width))
    console.print(f"\n{legend(results, console.width)}", style="dim")
