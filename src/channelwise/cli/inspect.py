"""`channelwise inspect`: where a model has outlier channels."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from channelwise.cli.options import AsJson, CalibrationLength, Data, Debug, Device, Model, Samples, Seed

DEFAULT_RECIPE = "outliertune-w8a8"
NO_RECIPE = "none"

ReportFile = Annotated[
    Path | None, typer.Option("--report", metavar="FILE.html", help="Write a page with every channel of every site.")
]
ShownRecipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="NAME|FILE.yaml",
        help=f"Also show the channels after this recipe's transform, and its errors; {NO_RECIPE} leaves that out. "
        f"Default with --report: {DEFAULT_RECIPE}.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace FILE.html if it exists.")]


def inspect(
    model: Model,
    data: Data,
    report: ReportFile = None,
    recipe: ShownRecipe = None,
    samples: Samples = None,
    length: CalibrationLength = None,
    seed: Seed = 0,
    device: Device = "cpu",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show where a model has outlier channels.

    For each set of layers that read one input: its largest channels, what could be folded where, and two lines about
    what is hard in this model and which recipes to try. With --report or --recipe also what plain quantization and the
    recipe would cost each layer.
    """
    from channelwise.cli.output import messages_console, print_json, quiet_libraries, results_console
    from channelwise.cli.progress import reported_progress
    from channelwise.report.format import short_path
    from channelwise.report.page.files import check_page_path

    if report is not None:
        check_page_path(report, overwrite)
    quiet_libraries()
    from channelwise import api
    from channelwise.evaluation.profile_data import without_channels
    from channelwise.report.inspection import advice, sites_table
    from channelwise.report.page.inspection import write_inspection_page
    from channelwise.report.page.inspection_words import cost_lines

    options: dict[str, Any] = {"samples": samples, "length": length, "seed": seed, "device": device}
    profile: dict[str, Any] | None = None
    with reported_progress() as progress:
        if report is None and recipe is None:
            sites = api.inspect(model, data=data, progress=progress, **options)
        else:
            name = DEFAULT_RECIPE if recipe is None else recipe
            chosen = None if name == NO_RECIPE else name
            sites, profile = api.profile(model, data=data, recipe=chosen, progress=progress, **options)
    if as_json:
        found = {"model": model, "sites": [asdict(site) for site in sites]}
        print_json(found if profile is None else without_channels(profile))
    else:
        console = results_console()
        console.print(sites_table(sites, console.width), "")
        console.print(advice(sites))
        for line in [] if profile is None else cost_lines(profile):
            console.print("", line.text, *(f"  {item}" for item in line.items), sep="\n", markup=False)
    if report is not None and profile is not None:
        write_inspection_page(profile, report)
        messages_console().print(f"written to {short_path(report)}", style="dim", markup=False, soft_wrap=True)
