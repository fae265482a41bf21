"""Ours beside torchao on one linear layer, where torchao is installed: microseconds and ratios in one run.

    PYTHONPATH=src python benchmarks/gpu/peers.py [--shapes 4096x4096] [--tokens 1,512] [--json FILE]
    PYTHONPATH=src python benchmarks/gpu/peers.py --device cpu          (a dry run)

torchao's products are its layers in bfloat16 with int8 weights and inputs quantized per token, and with weights of four
bits in groups of 128; `compiled` ones went through torch.compile, as its users do. Each stands beside the kind of ours
that stores the same bits. Timing, copies of weights and F.linear as the baseline are those of linears.py. `ours` is
their time over that of ours: above 1, ours is faster. error: against the dequantized weight for ours, for torchao
against the unquantized layer, so it shows what its quantization costs. What cannot be measured is told in one line.
"""

import argparse
import copy
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from cases import (
    BASELINE,
    Figures,
    Product,
    Shape,
    bf16_product,
    copies_needed,
    how,
    measured,
    our_product,
    shapes_of,
    tokens_of,
)
from devices import Device, device_of
from kinds import GROUP, KINDS
from tables import Findings, parser_of
from torch.nn import functional

TOKENS, DRY_TOKENS = "1,16,512,2048", "1,32"
HEADINGS = ("shape ", "tokens", "product ", "µs", "quartiles", "× bf16", "ours", "error", "how ")
RECOMPILATIONS = 256

INT8, INT4 = "torchao int8 dynamic", "torchao int4"
INT4_FORMAT = "tile_packed_to_4d"
"""The one whose kernel is torch's own; others need further packages."""

COMPILED = ", compiled"
COUNTERPARTS = {INT8: "w8a8-token", INT4: "w4-oc"}
"""A peer's product and ours beside it."""


def configurations() -> dict[str, Callable[[], Any]]:
    """torchao's, by product; none where it is not installed, or in another version."""
    try:
        from torchao import quantization  # type: ignore[import-not-found]
    except ImportError as error:
        print(f"not measured: torchao: {error}", file=sys.stderr)
        return {}
    return {
        INT8: quantization.Int8DynamicActivationInt8WeightConfig,
        INT4: lambda: quantization.Int4WeightOnlyConfig(group_size=GROUP, int4_packing_format=INT4_FORMAT),
    }


@torch.no_grad()
def torchao_product(config: Any, compiled: bool, shape: Shape, device: Device) -> Product:
    """F.linear with weights that torchao quantized; one compiled function serves all of them, as its arguments.

    Raises what torchao raises, and ValueError if it left the weight as it was.
    """
    from torchao.quantization import quantize_

    plain = torch.nn.Linear(shape.columns, shape.outputs, bias=False, dtype=torch.bfloat16, device=device.name)
    plain.weight.normal_(std=shape.columns**-0.5)
    weight = plain.weight.detach()
    quantized = copy.deepcopy(plain)
    quantize_(quantized, config)
    if type(quantized.weight.data) is torch.Tensor:
        raise ValueError("torchao left the layer as it was")
    bytes_ = weight_bytes(quantized.weight)
    weights = [copy.deepcopy(quantized.weight) for _ in range(copies_needed(bytes_, device))]
    forward = torch.compile(_product, dynamic=False) if compiled else _product
    copies = tuple(partial(forward, each) for each in weights)
    return Product(copies, bytes_, lambda x: x.double() @ weight.double().t())


def _product(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return functional.linear(x, weight)


def weight_bytes(weight: torch.Tensor) -> int:
    """Bytes of the tensors that a weight consists of."""
    if not hasattr(weight, "__tensor_flatten__"):
        return weight.nbytes
    names, _ = weight.__tensor_flatten__()
    return sum(weight_bytes(getattr(weight, name)) for name in names if getattr(weight, name) is not None)


def peers_of(configs: dict[str, Callable[[], Any]], shape: Shape, device: Device, eager: bool) -> dict[str, Product]:
    """What there is of torchao for a shape."""
    products: dict[str, Product] = {}
    for name, config in configs.items():
        for suffix in ("", COMPILED) if eager else (COMPILED,):
            try:
                products[name + suffix] = torchao_product(config(), bool(suffix), shape, device)
            except Exception as error:  # whatever torchao raises where it has no kernel for the device
                print(f"not measured: {name}{suffix}, {shape}: {type(error).__name__}: {error}", file=sys.stderr)
    return products


def add(found: dict[str, Figures], shape: Shape, tokens: int, findings: Findings) -> None:
    """The rows of one case."""
    for name, figures in found.items():
        seconds, ours = figures.timing.median, found.get(COUNTERPARTS.get(name.removesuffix(COMPILED), ""))
        speed = found[BASELINE].timing.median / seconds
        ratio = None if ours is None else seconds / ours.timing.median
        cells = (str(shape), str(tokens), name, f"{seconds * 1e6:,.1f}", figures.timing.spread(), f"{speed:.2f}")
        entry = {"shape": [shape.outputs, shape.columns], "tokens": tokens, "product": name, **figures.to_dict()}
        findings.add(
            (*cells, "" if ratio is None else f"{ratio:.2f}", f"{figures.error:.1g}", how(figures)),
            {**entry, "speed_over_bf16": speed, "time_over_ours": ratio},
        )


def measure(asked: argparse.Namespace, device: Device, findings: Findings) -> None:
    """Shape by shape."""
    configs = configurations()
    for shape in shapes_of(asked.shapes, device):
        if not findings.budget.allows(str(shape)):
            continue
        products = {BASELINE: bf16_product(shape, device)}
        products |= {name: our_product(KINDS[name], shape, device) for name in COUNTERPARTS.values()}
        products |= peers_of(configs, shape, device, asked.eager)
        for tokens in tokens_of(asked.tokens, TOKENS, DRY_TOKENS, device):
            if findings.budget.allows(f"{shape} at {tokens} tokens"):
                found, _ = measured(products, shape.columns, tokens, device, asked)
                add(found, shape, tokens, findings)


def main() -> None:
    """Prints one table."""
    parser = parser_of(__doc__, seconds=1.5)
    parser.add_argument("--shapes", help="out x in, such as 4096x4096,28672x8192")
    parser.add_argument("--tokens", help=f"default {TOKENS}")
    parser.add_argument("--eager", action="store_true", help="torchao without torch.compile as well")
    asked = parser.parse_args()
    torch.manual_seed(0)
    torch._dynamo.config.recompile_limit = RECOMPILATIONS
    device = device_of(asked.device)
    findings = Findings(device.about(), asked, "Ours beside torchao", HEADINGS)
    findings.told(lambda: measure(asked, device, findings))


if __name__ == "__main__":
    main()
