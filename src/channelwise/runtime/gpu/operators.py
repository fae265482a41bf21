"""The products as torch operators, so that `torch.compile` keeps them whole: shapes are known without computing.

Outside of compiled code the functions behind them are called directly, which costs less.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from channelwise.numerics.transform import ChannelTransform
from channelwise.runtime.gpu.integer import IntegerWeight, integer_product
from channelwise.runtime.gpu.layout import Strands
from channelwise.runtime.gpu.quantize import StaticVectors, static_bytes, token_bytes
from channelwise.runtime.gpu.weight_only import NumberWeight, weight_only_product
from channelwise.runtime.scheme import grid_of

Optional = torch.Tensor | None


@dataclass(frozen=True)
class Operators:
    """torch.ops.channelwise: gpu_static_product, gpu_token_product, gpu_weight_only."""

    static_product: Any
    token_product: Any
    weight_only: Any


@cache
def operators() -> Operators:
    """The operators, registered with torch at the first call."""
    found = {}
    fakes = ((static_product, _fake_integer), (token_product, _fake_integer), (weight_only, _fake_weight_only))
    for function, fake in fakes:
        operator = torch.library.custom_op(f"channelwise::gpu_{function.__name__}", function, mutates_args=())
        operator.register_fake(fake)
        found[function.__name__] = operator
    return Operators(**found)


def static_product(
    x: torch.Tensor,
    data: torch.Tensor,
    weight_sums: torch.Tensor,
    factor: torch.Tensor,
    bias: Optional,
    weight_offset: Optional,
    multiplier: torch.Tensor,
    offset: Optional,
    gain: Optional,
    bits: int,
    exponent_bits: int,
    columns: int,
    zero_point: int,
    grid: Sequence[int],
    dtype: torch.dtype,
) -> torch.Tensor:
    """`static_bytes` and `integer_product` with the parts of `StaticVectors` and `IntegerWeight`; [tokens, outputs]."""
    weight = IntegerWeight(data, weight_sums, bits, exponent_bits, len(factor), columns)
    vectors = StaticVectors(multiplier, offset, gain)
    codes, code_sums = static_bytes(x, vectors, grid_of(grid), weight.padded_columns, sums=weight_offset is not None)
    return integer_product(
        codes, weight, zero_point, factor, bias=bias, offset=weight_offset, code_sums=code_sums, dtype=dtype
    )


def token_product(
    x: torch.Tensor,
    data: torch.Tensor,
    weight_sums: torch.Tensor,
    factor: torch.Tensor,
    bias: Optional,
    weight_offset: Optional,
    shift: Optional,
    scale: Optional,
    bits: int,
    exponent_bits: int,
    columns: int,
    grid: Sequence[int],
    dtype: torch.dtype,
) -> torch.Tensor:
    """`token_bytes` and `integer_product` with the parts of `IntegerWeight`; [tokens, outputs]."""
    weight = IntegerWeight(data, weight_sums, bits, exponent_bits, len(factor), columns)
    transform = ChannelTransform(shift, scale)
    found = token_bytes(x, transform, grid_of(grid), weight.padded_columns, sums=weight_offset is not None)
    return integer_product(
        found.codes,
        weight,
        found.zero_point,
        factor,
        step=found.step,
        bias=bias,
        offset=weight_offset,
        code_sums=found.code_sums,
        dtype=dtype,
    )


def weight_only(
    x: torch.Tensor,
    data: torch.Tensor,
    scale: torch.Tensor,
    zero: Optional,
    bias: Optional,
    shift: Optional,
    channel_scale: Optional,
    bits: int,
    outputs: int,
    columns: int,
    group: int,
    down: bool,
    centre: int,
    exponent_bits: int,
    digits: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """`weight_only_product` with the parts of `NumberWeight`; in `dtype` [tokens, outputs]."""
    strands = Strands(data, bits, outputs, columns)
    weight = NumberWeight(strands, scale, zero, group, down, centre, exponent_bits)
    return weight_only_product(x, weight, bias, ChannelTransform(shift, channel_scale), dtype, digits)


def _fake_integer(x: torch.Tensor, *others: Any) -> torch.Tensor:
    _, _, factor, *_, dtype = others
    return x.new_empty(x.shape[0], factor.shape[0], dtype=dtype)


def _fake_weight_only(x: torch.Tensor, *others: Any) -> torch.Tensor:
    *_, outputs, _, _, _, _, _, _, dtype = others
    return x.new_empty(x.shape[0], outputs, dtype=dtype)
