"""Compare recipes, one of them changed on the way, with the original model.

    python examples/compare_recipes.py

`channelwise compare demo --recipes … --data demo --perplexity demo` shows the same as a table.
"""

import channelwise
from channelwise.recipe import load_recipe

NAMES = ("rtn-w6a6", "outliertune-w6a6")


def main() -> None:
    """Prints a line per recipe, the nearest to the original first."""
    recipes = [load_recipe(name) for name in NAMES]
    # Settings replace entries of a recipe, with values as in YAML: here the inputs of out and down keep 8 bits.
    recipes.append(load_recipe("outliertune-w6a6", ["name=outliertune-w6a6-down8", "inner.inputs.bits=8"]))
    results = channelwise.compare("demo", recipes=recipes, data="demo", perplexity="demo", samples=8)

    original = results["fp"]
    print(f"{'original':26} perplexity {original['perplexity']:8.3f}  {original['model_bytes'] / 1e6:5.1f} MB")
    for name, found in sorted(results["recipes"].items(), key=lambda entry: entry[1]["perplexity"]):
        size = f"{found['model_bytes'] / 1e6:5.1f} MB"
        print(f"{name:26} perplexity {found['perplexity']:8.3f}  {size}  × {found['perplexity_ratio']:.4f}")


if __name__ == "__main__":
    main()
