"""The verbs, gathered."""

from typing import Annotated

import typer

from channelwise import __version__
from channelwise.cli.compare import compare
from channelwise.cli.demo import demo
from channelwise.cli.evaluate import evaluate
from channelwise.cli.examples import EXAMPLES
from channelwise.cli.export import export
from channelwise.cli.generate import generate
from channelwise.cli.inspect import inspect
from channelwise.cli.quantize import quantize
from channelwise.cli.recipes import recipes
from channelwise.cli.serve import serve


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"channelwise {__version__}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)]

app = typer.Typer(
    name="channelwise",
    help="Quantize transformers whose activations have outlier channels: weights and activations at 8, 6 or 4 bits.",
    epilog="Start with `channelwise demo`. MODEL is a directory, a hub name, or demo; TEXT is a .txt, .jsonl or .tsv.",
    add_completion=False,
    rich_markup_mode=None,
)


@app.callback()
def _program(version: Version = False) -> None:
    # A callback without a docstring of its own leaves the help text to `app`.
    pass


for verb in (demo, recipes, inspect, quantize, evaluate, compare, generate, export, serve):
    app.command(epilog=EXAMPLES[verb.__name__])(verb)
