"""Layers with quantized inputs beside F.linear in bfloat16: microseconds and ratios, input quantization included.

    PYTHONPATH=src python benchmarks/gpu/linears.py [--json FILE]
    PYTHONPATH=src python benchmarks/gpu/linears.py --shapes 4096x4096 --tokens 512,2048 --kinds w8a8-channel
    PYTHONPATH=src python benchmarks/gpu/linears.py --device cpu          (a dry run)

The kinds are those of kinds.py: random codes, bfloat16 inputs and outputs. In every round each kind and F.linear have
their turn, in an order drawn anew: replays of a CUDA graph of several calls, each on another copy of the weight and
another input, so that the weights come from memory as in a model. Times are those of one call, medians over the rounds
with quartiles; × bf16 is the speed over F.linear in the same rounds. Before that the outputs are filled with NaN,
computed by the same graph and compared with float64: `error` is relative. `how` says whether calls could be captured.

A shape is out_features x in_features. aim: what × bf16 is meant to be at least.
"""

import argparse

import torch
from cases import (
    BASELINE,
    Figures,
    Product,
    Shape,
    bf16_product,
    how,
    measured,
    our_product,
    shapes_of,
    tokens_of,
    wrong,
)
from devices import Device, device_of
from kinds import QUANTIZED_INPUTS
from tables import Findings, chosen, parser_of

TOKENS, DRY_TOKENS = "1,16,512,2048,8192", "1,32"
HEADINGS = ("shape ", "tokens", "kind ", "µs", "quartiles", "TOP/s", "× bf16", "aim", "error", "how ")

AIM, AIM_TOKENS = 1.6, 512
"""Of W8A8, from so many tokens on."""


def aim_of(kind: str, tokens: int) -> float | None:
    """What × bf16 is meant to be at least."""
    return AIM if kind.startswith("w8a8") and tokens >= AIM_TOKENS else None


def add(found: dict[str, Figures], shape: Shape, tokens: int, findings: Findings) -> None:
    """The rows of one case."""
    for name, figures in found.items():
        seconds, aim = figures.timing.median, aim_of(name, tokens)
        ratio = found[BASELINE].timing.median / seconds
        rate = 2e-12 * tokens * shape.outputs * shape.columns / seconds
        cells = (str(shape), str(tokens), name, f"{seconds * 1e6:,.1f}", figures.timing.spread(), f"{rate:,.1f}")
        aimed = "" if aim is None else f"≥ {aim}"
        entry = {"shape": [shape.outputs, shape.columns], "tokens": tokens, "kind": name, **figures.to_dict()}
        findings.add(
            (*cells, f"{ratio:.2f}", aimed, f"{figures.error:.1g}", how(figures)),
            {**entry, "tera_operations_s": rate, "speed_over_bf16": ratio, "aim": aim},
        )
        line = wrong(name, shape, tokens, figures)
        if line is not None:
            findings.fault(line)


def measure(asked: argparse.Namespace, device: Device, findings: Findings) -> None:
    """Shape by shape."""
    kinds = chosen(QUANTIZED_INPUTS, asked.kinds, "kind")
    for shape in shapes_of(asked.shapes, device):
        if not findings.budget.allows(str(shape)):
            continue
        products: dict[str, Product] = {BASELINE: bf16_product(shape, device)}
        products |= {name: our_product(QUANTIZED_INPUTS[name], shape, device) for name in kinds}
        for tokens in tokens_of(asked.tokens, TOKENS, DRY_TOKENS, device):
            if findings.budget.allows(f"{shape} at {tokens} tokens"):
                found, _ = measured(products, shape.columns, tokens, device, asked)
                add(found, shape, tokens, findings)


def main() -> None:
    """Prints one table."""
    parser = parser_of(__doc__, seconds=1.0)
    parser.add_argument("--shapes", help="out x in, such as 4096x4096,28672x8192")
    parser.add_argument("--tokens", help=f"default {TOKENS}")
    parser.add_argument("--kinds", help=f"of {', '.join(QUANTIZED_INPUTS)}")
    asked = parser.parse_args()
    torch.manual_seed(0)
    device = device_of(asked.device)
    findings = Findings(device.about(), asked, "Linear layers with quantized inputs", HEADINGS)
    findings.told(lambda: measure(asked, device, findings))


if __name__ == "__main__":
    main()
