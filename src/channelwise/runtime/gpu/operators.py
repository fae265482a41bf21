"""The products as torch operators, so that `torch.compile` keeps them whole: shapes are known without computing.

What becomes of inputs before them is left to torch's own operations in compiled code, which the compiler makes part of
what comes before, such as a norm. Outside of compiled code the functions behind the operators are called directly,
which costs less.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from channelwise.numerics.transform import ChannelTransform
from channelwise.runtime.gpu import integer, weight_only
from channelwise.runtime.gpu.integer import IntegerWeight
from channelwise.runtime.gpu.layout import Strands
from channelwise.runtime.gpu.weight_only import InputDigits, NumberWeight

Optional = torch.Tensor | None


@dataclass(frozen=True)
class Operators:
    """torch.ops.channelwise: gpu_integer_product, gpu_product_of_digits, gpu_weight_only."""

    integer_product: Any
    product_of_digits: Any
    weight_only: Any


@cache
def operators() -> Operators:
    """The operators, registered with torch at the first call."""
    return Operators(
        _registered("integer_product", integer_product, _fake_integer),
        _registered("product_of_digits", product_of_digits, _fake_digits),
        _registered("weight_only", weight_only_product, _fake_whole),
    )


def _registered(name: str, function: Callable[..., torch.Tensor], fake: Callable[..., torch.Tensor]) -> Any:
    operator = torch.library.custom_op(f"channelwise::gpu_{name}", function, mutates_args=())
    operator.register_fake(fake)
    return operator


def integer_product(
    codes: torch.Tensor,
    code_sums: Optional,
    step: Optional,
    zero_points: Optional,
    data: torch.Tensor,
    weight_sums: torch.Tensor,
    factor: torch.Tensor,
    bias: Optional,
    weight_offset: Optional,
    bits: int,
    exponent_bits: int,
    columns: int,
    zero_point: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """`integer.integer_product` with the parts of `IntegerWeight`; zero_point: where there are no zero_points."""
    weight = IntegerWeight(data, weight_sums, bits, exponent_bits, len(factor), columns)
    zero = zero_point if zero_points is None else zero_points
    return integer.integer_product(
        codes, weight, zero, factor, step=step, bias=bias, offset=weight_offset, code_sums=code_sums, dtype=dtype
    )


def product_of_digits(
    digits: torch.Tensor,
    step: torch.Tensor,
    weighed: torch.Tensor,
    data: torch.Tensor,
    scale: torch.Tensor,
    zero: Optional,
    bias: Optional,
    bits: int,
    outputs: int,
    columns: int,
    group: int,
    centre: int,
    exponent_bits: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """`weight_only.product_of_digits` with the parts of `InputDigits` and of a `NumberWeight` in groups along rows."""
    weight = NumberWeight(Strands(data, bits, outputs, columns), scale, zero, group, False, centre, exponent_bits)
    inputs = InputDigits(digits.shape[2], None, digits, step, weighed, digits.shape[1])
    return weight_only.product_of_digits(inputs, weight, bias, ChannelTransform(), dtype)


def weight_only_product(
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
    """`weight_only.weight_only_product` with the parts of `NumberWeight`; in `dtype` [tokens, outputs]."""
    strands = Strands(data, bits, outputs, columns)
    weight = NumberWeight(strands, scale, zero, group, down, centre, exponent_bits)
    return weight_only.weight_only_product(x, weight, bias, ChannelTransform(shift, channel_scale), dtype, digits)


def _fake_integer(codes: torch.Tensor, *others: Any) -> torch.Tensor:
    _, _, _, _, _, factor, *_, dtype = others
    return codes.new_empty(codes.shape[0], factor.shape[0], dtype=dtype)


def _fake_digits(digits: torch.Tensor, *others: Any) -> torch.Tensor:
    *_, outputs, _, _, _, _, dtype = others
    return digits.new_empty(digits.shape[2], outputs, dtype=dtype)


def _fake_whole(x: torch.Tensor, *others: Any) -> torch.Tensor:
    *_, outputs, _, _, _, _, _, _, dtype = others
    return x.new_empty(x.shape[0], outputs, dtype=dtype)
