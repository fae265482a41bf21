"""Quantize a model, load what was written, and see what it lost.

    python examples/quantize_and_load.py

Instead of "demo", the bundled model and its texts, name a model directory, or a hub name, and text files of your own.
"""

import tempfile
from pathlib import Path

import channelwise


def main() -> None:
    """Writes into a temporary folder, which is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "demo-w6a6"
        result = channelwise.quantize("demo", recipe="outliertune-w6a6", data="demo", samples=32, output=output)
        before, after = result.before, result.after
        print(f"{result.recipe.name}: {before.model_bytes / 1e6:.1f} MB → {after.model_bytes / 1e6:.1f} MB")

        # transformers loads it too, once channelwise is imported: AutoModelForCausalLM.from_pretrained(output).
        model, tokenizer = channelwise.load(output)
        original = channelwise.evaluate("demo", perplexity="demo")["perplexity"]
        quantized = channelwise.evaluate(model, perplexity="demo", tokenizer=tokenizer)["perplexity"]
        print(f"perplexity: {original:.3f} → {quantized:.3f}, {quantized / original:.4f} times the original's")

        print(channelwise.generate(model, "def read_lines(path):", tokenizer=tokenizer, max_tokens=32).text)


if __name__ == "__main__":
    main()
