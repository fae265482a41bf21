"""E2M1, E1M2 and E3M0 for everything beside the searched choice, layer by layer: output errors and perplexity.

    python benchmarks/formats_per_layer.py MODEL --data TEXT --perplexity TEXT [--length L]

Every column is LLM-FP4 at W4A4 with searched ranges and the pre-shifted exponent bias, from the original model's
inputs, so that a row's errors are of the same problem; what differs is which formats it may choose from. An error is
the mean squared error of the layer's output over the searched choice's. Printed as Markdown.
"""

import argparse
from collections import Counter
from typing import Any

from channelwise import api
from channelwise.recipe import load_recipe

FORMATS = ("e2m1", "e1m2", "e3m0", "search")


def quantized(format_name: str, arguments: argparse.Namespace) -> tuple[dict[str, dict[str, Any]], float]:
    """What was chosen for each layer, and the perplexity."""
    recipe = load_recipe(
        "llm-fp4-w4a4",
        [f"weights.format={format_name}"]
        + [f"{site}.inputs.format={format_name}" for site in ("stream", "inner")]
        + ["head=null", "embedding=null"],
    )
    result = api.quantize(
        arguments.model, recipe=recipe, data=arguments.data, samples=arguments.samples, length=arguments.length
    )
    layers = {name: notes for site in result.record.sites for name, notes in site.layers.items()}
    measured = api.evaluate(
        result.model, tokenizer=result.tokenizer, perplexity=arguments.perplexity, length=arguments.length
    )
    return layers, measured["perplexity"]


def main() -> None:
    """Quantizes the model four times and prints two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--perplexity", required=True)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int)
    arguments = parser.parse_args()
    found = {name: quantized(name, arguments) for name in FORMATS}
    floating = api.evaluate(arguments.model, perplexity=arguments.perplexity, length=arguments.length)["perplexity"]
    searched = found["search"][0]

    print("| | E2M1 | E1M2 | E3M0 | searched |\n|---|---|---|---|---|")
    print("| × FP | " + " | ".join(f"{found[name][1] / floating:.4f}" for name in FORMATS) + " |")
    pairs = Counter(f"W {notes['weights']}, A {notes['inputs']}" for notes in searched.values())
    print("\nchosen: " + "; ".join(f"{pair} in {count} layers" for pair, count in pairs.most_common()) + "\n")

    print("| layer | E2M1 | E1M2 | E3M0 | searched W | searched A | largest b |\n|---|---|---|---|---|---|---|")
    for name, notes in searched.items():
        errors = " | ".join(f"{found[f][0][name]['loss'] / notes['loss']:.2f}" for f in FORMATS[:3])
        row = (
            name.removeprefix("model."),
            errors,
            notes["weights"],
            notes["inputs"],
            f"{notes['largest_exponent']:.0f}",
        )
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
