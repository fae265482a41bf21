"""A Llama of the 7B shape with random weights: prefill and decoding, ours beside bfloat16, and bytes of weights.

    PYTHONPATH=src python benchmarks/gpu/llama.py [--json FILE]
    PYTHONPATH=src python benchmarks/gpu/llama.py --blocks 8 --compile --recipes w8a8,w4
    PYTHONPATH=src python benchmarks/gpu/llama.py --device cpu          (a dry run on a tiny model)

Prefill is one pass over --batch sequences of --prompt tokens without a cache, which gives the logits of the last token
of each. Decoding is --steps tokens, one after another, of one sequence behind --context others in a static cache. Both
are CUDA graphs; in every round each model has its turn, in an order drawn anew. Figures are medians over the rounds;
× bf16 is the speed over the model in bfloat16 in the same rounds. Before that the logits are filled with NaN, computed
by the same graph and compared with a model whose quantized layers compute in float64: `error` is relative; roundings
of activations in bfloat16 fall differently and grow from block to block.

All linear layers of the blocks are ours (models.py), with random codes; embedding, norms and output layer stay in
bfloat16 and are shared. Layers with the same input share its codes. GB are those of a checkpoint: of the blocks' linear
layers, and of all weights; `held` is what one model's tensors take on the GPU; what is shared counts with bfloat16.
--compile lets torch.compile have the models first.

The aims: prefill with W8A8 at 1.48 ×, its weights at most 0.52 of bfloat16's; decoding with W4 at 2.5 ×. A cell that
has an aim ends in ✓ or ✗.
"""

import argparse
from dataclasses import dataclass
from typing import Any

import torch
from devices import Device, device_of
from models import RECIPES, SIZES, by_definition, linear_bytes, model_bytes, random_llama
from phases import Decoding, Phase, Prefill, Runs
from tables import Findings, chosen, parser_of
from timing import Timing, Turn, relative_error
from transformers import LlamaForCausalLM

FLOATING = "bf16"
DEFAULT = "w8a8,w4,w3"
HEADINGS = (
    "model ", *("prefill t/s", "× bf16", "error"), *("decode t/s", "× bf16", "error"),
    *("linear GB", "× bf16", "all GB", "× bf16", "held GB", "how "),
)  # fmt: skip
RECOMPILATIONS = 256
"""torch.compile falls back to eager calls, with a line in a log only, beyond a few shapes of one function."""

LEAST_SPEEDS = {"w8a8": {"prefill": 1.48}, "w4": {"decode": 2.5}}
MOST_BYTES = {"w8a8": 0.52}


def built(asked: argparse.Namespace, device: Device) -> tuple[dict[str, LlamaForCausalLM], dict[str, int]]:
    """The models, that in bfloat16 first, and the bytes that each takes on the device once it has run."""
    size, positions = SIZES[asked.size], max(asked.prompt, asked.context + asked.steps)
    models: dict[str, LlamaForCausalLM] = {}
    held: dict[str, int] = {}
    for name in [FLOATING, *chosen(RECIPES, asked.recipes, "recipe")]:
        before = device.held()
        recipe, shared = RECIPES.get(name), models.get(FLOATING)
        models[name] = random_llama(size, asked.blocks or size.blocks, positions, device.name, recipe, shared)
        # Layers prepare their weights at the first call.
        models[name](input_ids=torch.ones(1, 1, dtype=torch.long, device=device.name), use_cache=False)
        held[name] = device.held() - before
    return models, held


@dataclass(frozen=True)
class Measured:
    """By model: times of one call, errors where they were asked for, and whether the calls were captured."""

    phase: str
    times: dict[str, Timing]
    errors: dict[str, float]
    captured: dict[str, bool]


def measured(
    name: str, phase: Phase, models: dict[str, LlamaForCausalLM], asked: argparse.Namespace, device: Device
) -> Measured:
    """All models in one phase."""
    turns: dict[str, Turn] = {}
    errors: dict[str, float] = {}
    for model_name, model in models.items():
        runs = phase.of(model)
        exact = None if asked.no_check else _by_definition(runs)
        if asked.compile:
            runs = phase.of(torch.compile(model, dynamic=False))
        turns[model_name] = device.turn(runs.calls, runs.before)
        if exact is not None:
            errors[model_name] = relative_error(turns[model_name].poisoned(), exact)
    times = device.times(turns, asked.rounds, asked.seconds)
    return Measured(name, times, errors, {name: turn.captured for name, turn in turns.items()})


def _by_definition(runs: Runs) -> torch.Tensor:
    """The last call's logits, float64, from layers of ours that compute in float64."""
    with by_definition():
        runs.before()
        return [call() for call in runs.calls][-1].double()


def speed_cells(name: str, measured: Measured, tokens: int) -> tuple[list[str], dict[str, Any]]:
    """The cells and figures of a model in a phase whose calls handle so many tokens."""
    timing = measured.times[name]
    ratio, speed = measured.times[FLOATING].median / timing.median, tokens / timing.median
    aim = LEAST_SPEEDS.get(name, {}).get(measured.phase)
    mark = "" if aim is None else " ✓" if ratio >= aim else " ✗"
    error = measured.errors.get(name)
    figures = {"tokens_s": speed, "speed_over_bf16": ratio, "error": error, "captured": measured.captured[name]}
    cells = [f"{speed:,.0f}", f"{ratio:.2f}{mark}", "" if error is None else f"{error:.1g}"]
    return cells, {**timing.to_dict(), **figures}


def byte_cells(name: str, bytes_: int, floating: int) -> list[str]:
    """Gigabytes of a model, and their share of bfloat16's."""
    share, most = bytes_ / floating, MOST_BYTES.get(name)
    mark = "" if most is None else " ✓" if share <= most else " ✗"
    return [f"{bytes_ / 1e9:.3f}", f"{share:.3f}{mark}"]


@torch.no_grad()
def measure(asked: argparse.Namespace, device: Device, findings: Findings) -> None:
    """Builds the models, measures both phases and adds a row for each model."""
    models, held = built(asked, device)
    phases: dict[str, Phase] = {
        "prefill": Prefill(asked.batch, asked.prompt, device.name),
        "decode": Decoding(asked.context, asked.steps, device.name),
    }
    found = [measured(name, phase, models, asked, device) for name, phase in phases.items()]
    floating = models[FLOATING]
    for name, model in models.items():
        entry: dict[str, Any] = {"model": name, "held_bytes": held[name]}
        cells = [name]
        for each in found:
            more, entry[each.phase] = speed_cells(name, each, phases[each.phase].tokens)
            cells += more
        entry |= {"linear_bytes": linear_bytes(model), "model_bytes": model_bytes(model)}
        cells += byte_cells(name, entry["linear_bytes"], linear_bytes(floating))
        cells += byte_cells(name, entry["model_bytes"], model_bytes(floating))
        captured = all(each.captured[name] for each in found)
        findings.add([*cells, f"{held[name] / 1e9:.3f}", "graph" if captured else "calls"], entry)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = parser_of(__doc__, seconds=20.0)
    parser.add_argument("--size", choices=SIZES, help="default 7b, on the CPU tiny")
    parser.add_argument("--blocks", type=int, help="fewer than the size has")
    parser.add_argument("--recipes", default=DEFAULT, help=f"of {', '.join(RECIPES)}; default {DEFAULT}")
    parser.add_argument("--batch", type=int, default=8, help="sequences of the prefill")
    parser.add_argument("--prompt", type=int, help="tokens of each, default 2048")
    parser.add_argument("--context", type=int, help="tokens in the cache before decoding, default 512")
    parser.add_argument("--steps", type=int, default=8, help="tokens that a turn decodes")
    parser.add_argument("--compile", action="store_true", help="let torch.compile have the models")
    parser.add_argument("--no-check", action="store_true", help="leave the errors out")
    asked = parser.parse_args()
    dry = asked.device == "cpu"
    asked.size = asked.size or ("tiny" if dry else "7b")
    asked.prompt = asked.prompt or (32 if dry else 2048)
    asked.context = asked.context or (16 if dry else 512)
    return asked


def main() -> None:
    """Prints one table."""
    asked = parsed()
    torch.manual_seed(0)
    torch._dynamo.config.recompile_limit = RECOMPILATIONS
    device = device_of(asked.device)
    title = f"Llama {asked.size}, {asked.blocks or SIZES[asked.size].blocks} blocks; "
    title += "compiled; " if asked.compile else ""
    title += f"prefill of {asked.batch} × {asked.prompt}; decoding at {asked.context}"
    findings = Findings(device.about(), asked, title, HEADINGS)
    findings.told(lambda: measure(asked, device, findings))


if __name__ == "__main__":
    main()
