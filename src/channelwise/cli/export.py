"""`channelwise export`: a quantized model for other programs."""

from pathlib import Path
from typing import Annotated

import typer

from channelwise.cli.options import AsJson, Debug, Overwrite

Directory = Annotated[
    str, typer.Argument(metavar="DIR", help="A directory that channelwise quantize wrote.", show_default=False)
]
Format = Annotated[
    str | None, typer.Option("--format", metavar="compressed-tensors|fp", help="What to write.", show_default=False)
]
Output = Annotated[Path | None, typer.Option("--output", metavar="DIR", help="Where it goes.", show_default=False)]
Source = Annotated[
    str | None,
    typer.Option("--source", metavar="MODEL", help="For fp: the original that DIR was quantized from."),
]
List = Annotated[
    bool,
    typer.Option(
        "--list", help="Write nothing: say of every recipe whether compressed-tensors can hold it on a model."
    ),
]
Text = Annotated[str, typer.Option("--data", metavar="TEXT", help="For --list: a little calibration text.")]


def export(
    directory: Directory,
    format: Format = None,
    output: Output = None,
    source: Source = None,
    overwrite: Overwrite = False,
    list_recipes: List = False,
    data: Text = "demo",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write a quantized model for other programs.

    compressed-tensors: the same codes and scales as transformers, with that library, loads them; transforms are folded
    into the norms and layers in front. What the format cannot hold is refused, with the reason.

    fp: the original in floating point with DIR's transforms folded in, for other quantizers to go on from. Sites whose
    transform cannot be folded stay as they are, and are named.

    --list takes a floating-point MODEL for DIR and tries every recipe on it, on a few samples.
    """
    from channelwise.cli.output import quiet_libraries
    from channelwise.errors import InputError

    quiet_libraries()
    if list_recipes:
        if format is not None or output is not None or source is not None:
            raise InputError("--list writes nothing; leave out --format, --output and --source")
        _list(directory, data, as_json)
        return
    if format is None or output is None:
        raise InputError("give --format compressed-tensors or --format fp, and --output DIR")
    _export(directory, format, output, source, overwrite, as_json)


def _export(directory: str, format: str, output: Path, source: str | None, overwrite: bool, as_json: bool) -> None:
    from typing import cast

    from channelwise.checkpoint.exporting_directory import ExportFormat, export_checkpoint
    from channelwise.cli.output import messages_console, print_json, results_console
    from channelwise.report.format import megabytes, short_path

    result = export_checkpoint(
        directory, format=cast(ExportFormat, format), output=output, source=source, overwrite=overwrite
    )
    if as_json:
        print_json(
            {
                "source": directory,
                "format": format,
                "output": str(output),
                "bytes": result.bytes,
                "notes": list(result.notes),
            }
        )
        return
    for note in result.notes:
        messages_console().print(f"note: {note}", markup=False, soft_wrap=True)
    line = f"{short_path(output)}: {format}, {megabytes(result.bytes)}"
    results_console().print(line, markup=False, soft_wrap=True)


def _list(model: str, data: str, as_json: bool) -> None:
    from rich.text import Text

    from channelwise import api
    from channelwise.checkpoint.exporting import exportable
    from channelwise.checkpoint.exporting_directory import need_compressed_tensors
    from channelwise.cli.output import print_json, results_console
    from channelwise.cli.progress import reported_progress
    from channelwise.recipe import load_recipe, recipe_names
    from channelwise.report.tables import plain_table

    need_compressed_tensors()
    found: dict[str, str | None] = {}
    names = recipe_names()
    with reported_progress() as progress:
        for index, name in enumerate(names):
            progress(name, index, len(names))
            result = api.quantize(model, recipe=load_recipe(name), data=data, samples=4, length=64)
            found[name] = exportable(result.model, result.recipe.model_dump(mode="json"))
    if as_json:
        print_json({"model": model, "compressed-tensors": found})
        return
    console = results_console()
    table = plain_table(console.width)
    table.add_column("recipe", no_wrap=True, style="bold")
    table.add_column("as compressed-tensors")
    for name, reason in found.items():
        table.add_row(name, "yes" if reason is None else Text(f"no: {_without_block(reason)}", style="dim"))
    console.print(table)


def _without_block(reason: str) -> str:
    """The reason with layers named inside their block, as what holds for the first holds for all."""
    import re

    return re.sub(r"\b[a-zA-Z_][\w.]*\.\d+\.", "", reason)
