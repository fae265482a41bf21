"""The products as torch operators, so that `torch.compile` keeps them whole: shapes are known without computing.

Outside of compiled code the functions behind them are called directly, which costs less.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from channelwise.numerics.transform import ChannelTransform
from channelwise.runtime.cpu.integer import QuadPanels, integer_product
from channelwise.runtime.cpu.quantize import StaticQuantizer, static_bytes, token_bytes
from channelwise.runtime.cpu.weight_only import PairPanels, weight_only_product
from channelwise.runtime.scheme import grid_of

Optional = torch.Tensor | None


@dataclass(frozen=True)
class Operators:
    """torch.ops.channelwise: weight_only, static_product, token_product."""

    weight_only: Any
    static_product: Any
    token_product: Any


@cache
def operators() -> Operators:
    """The operators, registered with torch at the first call."""
    found = {}
    fakes = ((weight_only, _fake_weight_only), (static_product, _fake_integer), (token_product, _fake_integer))
    for function, fake in fakes:
        name = function.__name__
        operator = torch.library.custom_op(f"channelwise::{name}", function, mutates_args=(), device_types="cpu")
        operator.register_fake(fake)
        found[name] = operator
    return Operators(**found)


def weight_only(
    x: torch.Tensor,
    data: torch.Tensor,
    scale: torch.Tensor,
    zero_point: Optional,
    table: torch.Tensor,
    bias: Optional,
    bits: int,
    rows: int,
    columns: int,
    group: int,
    down_columns: bool,
    dtype: torch.dtype,
) -> torch.Tensor:
    """`weight_only_product` of x [tokens, columns] with the parts of `PairPanels`; in `dtype` [tokens, rows]."""
    panels = PairPanels(data, scale, zero_point, table, bits, rows, columns, group, down_columns)
    return weight_only_product(x, panels, bias, dtype=dtype)


def static_product(
    x: torch.Tensor,
    data: torch.Tensor,
    sums: torch.Tensor,
    table: torch.Tensor,
    factor: torch.Tensor,
    bias: Optional,
    weight_offset: Optional,
    multiplier: torch.Tensor,
    offset: Optional,
    gain: Optional,
    bits: int,
    rows: int,
    columns: int,
    zero_point: int,
    grid: Sequence[int],
    dtype: torch.dtype,
) -> torch.Tensor:
    """`static_bytes` and `integer_product` with the parts of `StaticQuantizer` and `QuadPanels`; [tokens, rows]."""
    panels = QuadPanels(data, bits, rows, columns, table, sums[:rows], sums)
    quantizer = StaticQuantizer(grid_of(grid), multiplier, offset, gain, zero_point)
    codes, code_sums = static_bytes(x, quantizer, panels.padded_columns)
    return integer_product(
        codes, panels, zero_point, factor, bias=bias, offset=weight_offset, code_sums=code_sums, dtype=dtype
    )


def token_product(
    x: torch.Tensor,
    data: torch.Tensor,
    sums: torch.Tensor,
    table: torch.Tensor,
    factor: torch.Tensor,
    bias: Optional,
    weight_offset: Optional,
    shift: Optional,
    scale: Optional,
    bits: int,
    rows: int,
    columns: int,
    grid: Sequence[int],
    dtype: torch.dtype,
) -> torch.Tensor:
    """`token_bytes` and `integer_product` with the parts of `QuadPanels`; [tokens, rows]."""
    panels = QuadPanels(data, bits, rows, columns, table, sums[:rows], sums)
    found = token_bytes(x, ChannelTransform(shift, scale), grid_of(grid), panels.padded_columns)
    return integer_product(
        found.codes,
        panels,
        found.zero_point,
        factor,
        step=found.step,
        bias=bias,
        offset=weight_offset,
        code_sums=found.code_sums,
        dtype=dtype,
    )


def _fake_weight_only(x: torch.Tensor, *others: Any) -> torch.Tensor:
    *_, rows, _, _, _, dtype = others
    return x.new_empty(x.shape[0], rows, dtype=dtype)


def _fake_integer(x: torch.Tensor, *others: Any) -> torch.Tensor:
    _, _, _, factor, *_, dtype = others
    return x.new_empty(x.shape[0], factor.shape[0], dtype=dtype)
