"""A whole Llama of the 1B shape with random weights: bf16 beside ours, tokens per second of prefill and of decoding.

    python benchmarks/cpu/models.py [--size 1b] [--threads 2] [--rounds 7] [--recipes w8a8,w4,w3] [--json FILE]
    python benchmarks/cpu/models.py --size tiny --rounds 2

Prefill is one pass over --prompt tokens (512) that fills a cache and gives the last token's logits, as generate begins.
Decoding is transformers' generate, batch 1, greedy, --new tokens (32) after a prompt of 8, with its dynamic cache or
with --cache static; its time is that between the first new token and the last, so the prompt is not in it, but all
that generate does per token is. In every round each model does one prefill and one generate, in an order drawn anew.
Figures are medians over the rounds.

The linear layers of the blocks are quantized, with random codes (`llama.py`); the embedding, the norms and the output
layer stay bf16, as recipes leave them, and are shared by all models; --head quantizes the output layer of ours to 8
bits, weights only. MB are those of the blocks' linear layers in memory. --resident measures the resident memory of a
process that holds this model alone and has done one prefill, one process per model.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from llama import HEAD_SCHEME, RECIPES, SIZES, Recipe, linear_bytes, random_llama
from rich.table import Table
from timing import Timing, chosen, head_line, interleaved, machine, wide_console
from transformers import LlamaForCausalLM
from transformers.generation.streamers import BaseStreamer

FLOATING = "bf16"
DEFAULT = f"{FLOATING},w8a8,w4a8,w4a4-fp4,w4,w3"
SHORT_PROMPT = 8


class Clock(BaseStreamer):
    """When generate gives a token; it gives the prompt first."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """One step's tokens."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """The last token is given."""


def recipe_of(name: str, head: bool) -> Recipe | None:
    """The recipe of a model's name, None for floating point."""
    if name == FLOATING:
        return None
    return replace(RECIPES[name], head=HEAD_SCHEME) if head else RECIPES[name]


@torch.no_grad()
def prefill(model: LlamaForCausalLM, length: int) -> None:
    """One pass over `length` tokens."""
    ids = torch.arange(length).remainder(model.config.vocab_size)[None]
    model(input_ids=ids, use_cache=True, logits_to_keep=1)


@torch.no_grad()
def decode(model: LlamaForCausalLM, new: int, cache: str) -> float:
    """Seconds from the first of `new` tokens to the last."""
    clock = Clock()
    ids = torch.arange(SHORT_PROMPT)[None]
    kind = {"cache_implementation": "static"} if cache == "static" else {}
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new,
        min_new_tokens=new,
        do_sample=False,
        streamer=clock,
        **kind,
    )
    assert len(clock.times) == new + 1
    return clock.times[-1] - clock.times[1]


def measured(models: dict[str, LlamaForCausalLM], asked: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Prefill and decoding of every model, round by round."""
    decoding: dict[str, list[float]] = {name: [] for name in models}

    def decoder(name: str) -> Callable[[int], object]:
        return lambda number: decoding[name].append(decode(models[name], asked.new, asked.cache))

    calls: dict[str, Callable[[int], object]] = {}
    for name, model in models.items():
        calls[f"prefill {name}"] = lambda number, model=model: prefill(model, asked.prompt)
        calls[f"decode {name}"] = decoder(name)
    prefills = interleaved(calls, asked.rounds)
    found = {}
    for name, model in models.items():
        found[name] = {
            "prefill": _speed(prefills[f"prefill {name}"], asked.prompt),
            # The first is the warm-up's.
            "decode": _speed(Timing(tuple(decoding[name][1:])), asked.new - 1),
            "linear_bytes": linear_bytes(model),
        }
    return found


def _speed(timing: Timing, tokens: int) -> dict[str, Any]:
    slow, fast = (tokens / seconds for seconds in reversed(timing.quartiles))
    return {"tokens_s": tokens / timing.median, "quartiles_tokens_s": [slow, fast], **timing.to_dict()}


def resident_bytes(name: str, asked: argparse.Namespace) -> int:
    """Resident memory of a process of its own with this model."""
    command = [sys.executable, __file__, "--hold", name, "--size", asked.size, "--threads", str(asked.threads)]
    command += ["--prompt", str(asked.prompt)] + (["--head"] if asked.head else [])
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.splitlines()[-1])


def hold(name: str, asked: argparse.Namespace) -> None:
    """What such a process does: it prints the bytes."""
    model = random_llama(asked.size, recipe_of(name, asked.head))
    prefill(model, asked.prompt)
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    print(1024 * int(line.split()[1]))


def table_of(found: dict[str, dict[str, Any]], title: str) -> Table:
    """All models; ratios to bf16 where it is among them."""
    table, base = Table(title=title), found.get(FLOATING)
    table.add_column("model", no_wrap=True)
    for what in ("prefill t/s", "quartiles", "× bf16", "decode t/s", "quartiles", "× bf16", "MB", "× bf16", "RSS MB"):
        table.add_column(what, justify="right", no_wrap=True)
    for name, model in found.items():
        cells = []
        for kind in ("prefill", "decode"):
            slow, fast = model[kind]["quartiles_tokens_s"]
            ratio = "" if base is None else f"{model[kind]['tokens_s'] / base[kind]['tokens_s']:.2f}"
            cells += [f"{model[kind]['tokens_s']:,.1f}", f"{slow:,.1f}–{fast:,.1f}", ratio]
        ratio = "" if base is None else f"{model['linear_bytes'] / base['linear_bytes']:.3f}"
        resident = f"{model['resident_bytes'] / 1e6:,.0f}" if "resident_bytes" in model else ""
        table.add_row(name, *cells, f"{model['linear_bytes'] / 1e6:,.0f}", ratio, resident)
    return table


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="1b")
    parser.add_argument("--recipes", default=DEFAULT, help=f"of {', '.join([FLOATING, *RECIPES])}; default {DEFAULT}")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prefill")
    parser.add_argument("--new", type=int, default=32, help="tokens to generate")
    parser.add_argument("--cache", choices=("dynamic", "static"), default="dynamic")
    parser.add_argument("--head", action="store_true", help="quantize the output layer to 8 bits, weights only")
    parser.add_argument("--resident", action="store_true", help="measure resident memory too")
    parser.add_argument("--hold", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="write all figures there, every round's among them")
    return parser.parse_args()


def main() -> None:
    """Makes the models, measures them and prints one table."""
    asked = parsed()
    torch.set_num_threads(asked.threads)
    if asked.hold is not None:
        hold(asked.hold, asked)
        return
    console, about = wide_console(), machine()
    console.print(head_line(about))
    names = chosen([FLOATING, *RECIPES], asked.recipes, "recipe")
    shared = random_llama(asked.size)
    models = {n: shared if n == FLOATING else random_llama(asked.size, recipe_of(n, asked.head), shared) for n in names}
    found = measured(models, asked)
    if asked.resident:
        for name in names:
            found[name]["resident_bytes"] = resident_bytes(name, asked)
    title = f"Llama {asked.size}, prefill of {asked.prompt}, {asked.new} new tokens, {asked.cache} cache, "
    title += f"medians of {asked.rounds} rounds"
    console.print(table_of(found, title))
    if asked.json is not None:
        options = {key: str(value) for key, value in vars(asked).items()}
        asked.json.write_text(json.dumps({"machine": about, "asked": options, "models": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
