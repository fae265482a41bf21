"""GPTQ of ours beside llm-compressor's: same model, calibration tokens and evaluation; perplexity and wall time.

    python benchmarks/peers/llm_compressor.py MODEL --data TEXT --perplexity TEXT --samples 128 --length 256

MODEL is a directory or `demo`; --data and --perplexity may be `demo`, too. The first run makes the peer's environment
(llm_compressor.txt, 1.5 GB) in --environment. We tokenize once; both sides read the same ids from a file, in batches
of the same size, without masks or padding. Each run of each side is a process of its own, ours and the peer's in turn,
on the CPU, with --threads threads; what is timed is the quantization alone (no imports, loading or saving), after an
untimed one on the first batch. Both hand back dequantized float32 weights, which our code evaluates in float32.

Both: weights only, integers with zero points, min-max over groups of 128 along the rows, damping 0.01, blocks of 128,
columns by descending diagonal of the Hessian (the peer's `actorder: static`), embedding and output layer left alone.

What differs, as neither has a setting for it, or by default:
- the order within a block: we quantize level by level (q,k,v; out; fc1; fc2), each seeing the rounding of those before
  it in its block. The peer's `sequential` pipeline with its default targets, the decoder layers, quantizes all of a
  block at once, in two passes over it. `--set sequential=false` makes ours do the same; `--sequential-targets Linear`
  makes the peer go layer by layer, which comes to what we do;
- scales are stored in float16 here, in the model's dtype there (bfloat16 where --dtype is auto and the model is);
- the Cholesky factor is of the Hessian, in float64, here; of its inverse, in float32, there;
- dead channels: rounded to nearest and left out of the mean that damping is a share of here; zeroed and counted there;
- a Hessian that is still singular: more damping here, round-to-nearest there (the JSON names the layers);
- attention while calibrating: the model's own (SDPA) here, eager there, which the peer forces; both causal;
- transformers: the peer's newest release allows no version as new as ours.
The peer takes both widths as `num_bits` of a config group, not as one of its presets. Its codes are dequantized in
memory, not read back from a checkpoint. Wall times mean little on a machine that is doing something else.
"""

import argparse
import copy
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from environments import peer_python, run_side
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from channelwise.errors import InputError
from channelwise.evaluation.measure import measure, prepare
from channelwise.model.batches import read_data
from channelwise.model.loading import load_model
from channelwise.model.sources import model_directory
from channelwise.opening import opened_to_quantize
from channelwise.recipe import Recipe, load_recipe

HERE = Path(__file__).resolve().parent
SIDES = {"channelwise": HERE / "run_channelwise.py", "llm-compressor": HERE / "run_llm_compressor.py"}


def peer_settings(recipe: Recipe) -> dict[str, Any]:
    """What the peer needs to know of a recipe. Raises InputError for one that it cannot follow."""
    weights = recipe.weights
    gptq = weights.build_rounding()
    plain = (weights.format, weights.granularity, weights.direction, weights.clip) == ("integer", "group", "oc", "none")
    sites = [site for site in (recipe.stream, recipe.inner) if site.method != {"name": "none"} or site.inputs]
    if gptq is None or not plain or sites or recipe.head or recipe.embedding or recipe.exclude:
        raise InputError(f"{recipe.name} is not plain GPTQ of all weights in groups; give gptq-w4g128 or gptq-w3g128")
    return {
        "bits": weights.bits,
        "symmetric": weights.symmetric,
        "group_size": weights.group_size,
        "damping": gptq.damping,
        "block": gptq.block,
        "act_order": gptq.act_order,
    }


@torch.no_grad()
def with_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    """A copy of the model with these weights."""
    changed = copy.deepcopy(model)
    for name, weight in weights.items():
        changed.get_submodule(name).weight.copy_(weight)  # type: ignore[union-attr, operator]
    return changed


def compared(name: str, python: Path, arguments: argparse.Namespace, work: Path) -> dict[str, list[dict[str, Any]]]:
    """All runs of both sides, in turn, by side."""
    recipe = load_recipe(name, arguments.set)
    source = opened_to_quantize(arguments.model, "cpu")
    data = read_data(arguments.data)
    batches = source.calibration(data, recipe.calibration, arguments.samples, arguments.length, arguments.seed)
    save_file({"input_ids": torch.cat([batch["input_ids"] for batch in batches])}, work / "tokens.safetensors")
    job = {
        "model": str(model_directory(arguments.model).resolve()),
        "dtype": arguments.dtype,
        "threads": arguments.threads,
        "tokens": str(work / "tokens.safetensors"),
        "batch_size": len(batches[0]["input_ids"]),
        "sequential_targets": arguments.sequential_targets.split(",") if arguments.sequential_targets else None,
        "recipe": recipe.model_dump(mode="json"),
        "peer": peer_settings(recipe),
    }
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for number in range(arguments.runs):
        for side, script in SIDES.items():
            print(f"{name}: {side}, run {number + 1} of {arguments.runs}", file=sys.stderr)
            interpreter = sys.executable if side == "channelwise" else python
            runs[side].append(run_side(interpreter, script, job, work))
    ours, theirs = (set(found[0]["weights"]) for found in runs.values())
    if ours != theirs:
        raise InputError(f"{name}: only one side quantized {', '.join(sorted(ours ^ theirs))}")
    return runs


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="../shared/models/opt-8m")
    parser.add_argument("--data", help="calibration text; default: calibration.txt beside the model")
    parser.add_argument("--perplexity", help="text to evaluate on; default: test.txt beside the model")
    parser.add_argument("--recipes", default="gptq-w4g128,gptq-w3g128")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=256, help="tokens of a window, of both texts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="auto", help="the model's while it is quantized: auto or float32")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change an entry of our recipe")
    parser.add_argument("--sequential-targets", help="the peer's: class names; default: decoder layers")
    parser.add_argument("--environment", type=Path, default=HERE.parents[1] / "build" / "peers" / "llm-compressor")
    parser.add_argument("--json", type=Path, help="write all figures there")
    arguments = parser.parse_args()
    for option, file in (("data", "calibration.txt"), ("perplexity", "test.txt")):
        if getattr(arguments, option) is None:
            setattr(arguments, option, str(model_directory(arguments.model) / file))
    return arguments


def main() -> None:
    """Compares recipe by recipe and prints one table."""
    arguments = parsed()
    python = peer_python(arguments.environment.resolve(), HERE / "llm_compressor.txt")
    work = arguments.environment.resolve().with_name("llm-compressor-work")
    work.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load_model(arguments.model, "float32")
    questions = prepare(model, tokenizer, perplexity=arguments.perplexity, length=arguments.length)
    floating = measure(model, questions)["perplexity"]
    title = f"{arguments.model}, {arguments.samples} × {arguments.length} tokens, {arguments.dtype}, "
    table = Table(title=title + f"{arguments.threads} threads, medians of {arguments.runs} runs")
    for heading in ("recipe", "by", "perplexity", "× FP", "seconds", "of all runs"):
        table.add_column(heading, justify="left" if heading in ("recipe", "by") else "right", no_wrap=True)
    table.add_row("floating point", "", f"{floating:.4f}", "1.0000", "", "")
    results = []
    for name in arguments.recipes.split(","):
        for side, runs in compared(name, python, arguments, work).items():
            found = measure(with_weights(model, runs[0].pop("weights")), questions)["perplexity"]
            seconds = [run["seconds"] for run in runs]
            median, spread = statistics.median(seconds), f"{min(seconds):.2f}–{max(seconds):.2f}"
            table.add_row(name, side, f"{found:.4f}", f"{found / floating:.4f}", f"{median:.2f}", spread)
            about = {key: runs[0][key] for key in ("versions", "rounded_to_nearest") if key in runs[0]}
            result = {"perplexity": found, "perplexity_ratio": found / floating, "seconds": median, "runs": seconds}
            results.append({"recipe": name, "by": side, **result, **about})
    Console(width=max(100, Console().width)).print(table)
    if arguments.json is not None:
        asked = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
        whole = {"asked": asked, "floating_perplexity": floating, "results": results}
        arguments.json.write_text(json.dumps(whole, indent=2) + "\n")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
