"""A method of your own, outside the package: SmoothQuant whose power α is searched for every site.

    python examples/own_method.py

Recipes name it by its import path. On the command line and in YAML it is the same:

    PYTHONPATH=examples channelwise compare demo --recipes smoothquant-w6a6 --data demo --perplexity demo \
        --set "stream.method={name: own_method:SearchedSmoothQuant, steps: 4}"
"""

from dataclasses import dataclass

import channelwise
from channelwise.methods import SmoothQuant
from channelwise.methods.site import Choice, SiteView
from channelwise.recipe import load_recipe


@dataclass(frozen=True)
class SearchedSmoothQuant:
    """Of some powers α between 0 and 1 the one that changes the site's output least.

    The fields are the options that a recipe may give; their types are checked.
    """

    steps: int = 10

    def choose(self, site: SiteView) -> Choice:
        """What a method is: a site's statistics and weights in, a channel transform out, and notes for the record."""
        powers = [step / self.steps for step in range(self.steps + 1)]
        transforms = {alpha: SmoothQuant(alpha=alpha).choose(site).transform for alpha in powers}
        losses = {alpha: site.loss(transform) for alpha, transform in transforms.items()}
        best = min(losses, key=losses.__getitem__)
        return Choice(transforms[best], {"alpha": best, "loss": losses[best]})


def main() -> None:
    """Compares it with the fixed power on the bundled model."""
    method = "{name: own_method:SearchedSmoothQuant, steps: 5}"
    searched = load_recipe("smoothquant-w6a6", ["name=searched-w6a6", f"stream.method={method}"])
    results = channelwise.compare(
        "demo", recipes=["smoothquant-w6a6", searched], data="demo", perplexity="demo", samples=8
    )
    for name, found in results["recipes"].items():
        print(f"{name}: {found['perplexity_ratio']:.4f} times the original's perplexity")


if __name__ == "__main__":
    main()
