"""Recipes under several calibration seeds: mean and spread of perplexity over floating point's.

    python benchmarks/calibration_seeds.py MODEL --data TEXT --perplexity TEXT --recipes A,B,C [--seeds 3]

A seed chooses which samples of the text calibrate. The evaluation text is the same for all. Spread is the largest less
the smallest. Printed as Markdown, with the ratios of every seed.
"""

import argparse
from statistics import fmean
from typing import Any

from channelwise import api
from channelwise.recipe import load_recipe


def ratios(arguments: argparse.Namespace, seed: int) -> dict[str, float]:
    """Each recipe's perplexity over floating point's, calibrated with this seed."""
    result: dict[str, Any] = api.compare(
        arguments.model,
        recipes=[load_recipe(name) for name in arguments.recipes.split(",")],
        data=arguments.data,
        perplexity=arguments.perplexity,
        samples=arguments.samples,
        length=arguments.length,
        perplexity_length=arguments.length,
        seed=seed,
    )
    return {name: found["perplexity_ratio"] for name, found in result["recipes"].items()}


def main() -> None:
    """Compares the recipes once per seed and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--perplexity", required=True)
    parser.add_argument("--recipes", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=256)
    arguments = parser.parse_args()
    found = [ratios(arguments, seed) for seed in range(arguments.seeds)]

    print("| recipe | mean × FP | spread | " + " | ".join(f"seed {seed}" for seed in range(len(found))) + " |")
    print("|---|---|---|" + "---|" * len(found))
    for name in found[0]:
        values = [one[name] for one in found]
        cells = [f"{fmean(values):.4f}", f"{max(values) - min(values):.4f}", *(f"{value:.4f}" for value in values)]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
