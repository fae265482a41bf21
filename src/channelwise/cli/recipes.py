"""`channelwise recipes`: the catalogue, or one recipe."""

from typing import Annotated

import typer

from channelwise.cli.options import AsJson, Debug

Name = Annotated[str | None, typer.Argument(metavar="[NAME]", help="Print this recipe's YAML.", show_default=False)]


def recipes(name: Name = None, as_json: AsJson = False, debug: Debug = False) -> None:
    """List the recipes, or print one as YAML.

    `channelwise recipes NAME > mine.yaml` starts a recipe of your own.
    """
    from channelwise.cli.output import print_json, results_console
    from channelwise.recipe import load_recipe, recipe_names
    from channelwise.report.tables import recipes_table

    if name is not None:
        _print_recipe(name, as_json)
        return
    catalogue = [load_recipe(known) for known in recipe_names()]
    if as_json:
        print_json({recipe.name: recipe.model_dump(mode="json") for recipe in catalogue})
        return
    console = results_console()
    console.print(recipes_table(catalogue, console.width))
    console.print("\n`channelwise recipes NAME` prints one as YAML; W/A: bits of weights and inputs.", style="dim")


def _print_recipe(name: str, as_json: bool) -> None:
    from channelwise.cli.output import print_json
    from channelwise.recipe import load_recipe, recipe_text

    text = recipe_text(name)
    if as_json:
        print_json(load_recipe(name).model_dump(mode="json"))
    else:
        print(text.rstrip())
