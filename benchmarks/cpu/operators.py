"""torch's own linear layers, each with a random weight of its own: what ours is measured against."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

GROUP = 128
INNER_TILES = 2
UNSIGNED_OFFSET = 128
FLOAT32_BYTES, BFLOAT16_BYTES = 4, 2


@dataclass(frozen=True)
class Inputs:
    """One random input [rows, in_features] in every form that a candidate takes."""

    bf16: torch.Tensor
    fp32: torch.Tensor
    unsigned: torch.Tensor
    signed: torch.Tensor

    @classmethod
    def random(cls, rows: int, in_features: int) -> "Inputs":
        """Standard normal numbers; codes over the whole range."""
        x = torch.randn(rows, in_features)
        codes = torch.randint(0, 256, (rows, in_features))
        return cls(x.bfloat16(), x, codes.to(torch.uint8), (codes - UNSIGNED_OFFSET).to(torch.int8))


@dataclass(frozen=True)
class Layer:
    """A candidate with one weight; bytes: what the weight takes in memory, scales included."""

    call: Callable[[Inputs], torch.Tensor]
    bytes: int


Maker = Callable[[int, int, int], Layer]
"""Makes a layer for out_features, in_features and rows."""


def bf16_linear(outputs: int, inputs: int, rows: int) -> Layer:
    """F.linear, as a floating-point model calls it."""
    weight = torch.empty(outputs, inputs, dtype=torch.bfloat16).normal_(std=inputs**-0.5)
    return Layer(lambda x: functional.linear(x.bf16, weight), weight.nbytes)


def fp32_linear(outputs: int, inputs: int, rows: int) -> Layer:
    """F.linear in float32."""
    weight = torch.empty(outputs, inputs).normal_(std=inputs**-0.5)
    return Layer(lambda x: functional.linear(x.fp32, weight), weight.nbytes)


def bf16_prepacked(outputs: int, inputs: int, rows: int) -> Layer:
    """oneDNN with the weight reordered beforehand for this number of rows."""
    weight = torch.empty(outputs, inputs, dtype=torch.bfloat16).normal_(std=inputs**-0.5)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    product = torch.ops.mkldnn._linear_pointwise.default
    return Layer(lambda x: product(x.bf16, packed, None, "none", [], ""), weight.nbytes)


def _qlinear(outputs: int, inputs: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """oneDNN's u8 × s8 product to bfloat16, the zero point in the bias."""
    weight = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    factor = torch.full((outputs,), 1e-4)
    zeros, bias = torch.zeros(outputs, dtype=torch.int32), torch.randn(outputs)
    product = torch.ops.onednn.qlinear_pointwise.default
    return lambda codes: product(
        codes, 1.0, 0, packed, factor, zeros, bias, 1.0, 0, torch.bfloat16, "none", [], ""
    )  # fmt: skip


def onednn_qlinear(outputs: int, inputs: int, rows: int) -> Layer:
    """oneDNN's W8A8 product with codes given."""
    product = _qlinear(outputs, inputs)
    return Layer(lambda x: product(x.unsigned), outputs * inputs + outputs * FLOAT32_BYTES)


def onednn_qlinear_eager(outputs: int, inputs: int, rows: int) -> Layer:
    """The same after a static quantization, a multiplier per channel, in eager torch."""
    product, multiplier = _qlinear(outputs, inputs), torch.full((inputs,), 31.75)

    def call(x: Inputs) -> torch.Tensor:
        codes = (x.bf16.float() * multiplier).add_(UNSIGNED_OFFSET).round_().clamp_(0, 255).to(torch.uint8)
        return product(codes)

    return Layer(call, outputs * inputs + outputs * FLOAT32_BYTES)


def int_mm(outputs: int, inputs: int, rows: int) -> Layer:
    """torch._int_mm of signed codes given, to int32."""
    weight = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8).t()
    return Layer(lambda x: torch._int_mm(x.signed, weight), weight.nbytes)


def int4pack(outputs: int, inputs: int, rows: int) -> Layer:
    """Weight-only 4 bits in groups of 128 along the rows, bfloat16."""
    codes = torch.randint(0, 16, (outputs, inputs), dtype=torch.int32)
    weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, INNER_TILES)
    scales = torch.rand(inputs // GROUP, outputs, 2).bfloat16()
    product = torch.ops.aten._weight_int4pack_mm_for_cpu
    return Layer(lambda x: product(x.bf16, weight, GROUP, scales), weight.nbytes + scales.nbytes)


def int8pack(outputs: int, inputs: int, rows: int) -> Layer:
    """Weight-only 8 bits with a scale per row, bfloat16."""
    weight = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8)
    scales = torch.rand(outputs).bfloat16()
    product = torch.ops.aten._weight_int8pack_mm
    return Layer(lambda x: product(x.bf16, weight, scales), weight.nbytes + scales.nbytes)


BASELINE, PREPACKED = "bf16", "bf16-prepacked"

MAKERS: dict[str, Maker] = {
    BASELINE: bf16_linear,
    PREPACKED: bf16_prepacked,
    "fp32": fp32_linear,
    "qlinear": onednn_qlinear,
    "qlinear-eager": onednn_qlinear_eager,
    "int_mm": int_mm,
    "int8pack": int8pack,
    "int4pack-g128": int4pack,
}
"""By the names in tables."""
