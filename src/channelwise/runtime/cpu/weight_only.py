"""Products of floating-point inputs with weights of 2 to 8 bits in groups, kept packed at their width.

A weight is (table[code] − zero point) · scale. Few rows are multiplied with codes looked up on their way from memory;
for many rows, panels are expanded into the processor's cache. Input and weight values keep their precision with few
rows; with many bfloat16 rows, weights are rounded to bfloat16 as well.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from channelwise.numerics.granularity import Granularity, parameter_shape
from channelwise.runtime.cpu.library import INT32, INT64, POINTER, kernels, level_number
from channelwise.runtime.cpu.panels import (
    CONTAINERS,
    PANEL_OUTPUTS,
    check_tensor,
    empty_panels,
    padded_columns,
    panel_bytes,
)
from channelwise.runtime.packing import packed_columns

ROW_GROUP_UNIT = 32
"""Groups along rows are whole multiples of this, or whole rows."""

NUMBERS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Dtypes as C++ counts them."""

EXPANDED_ROWS = 512
"""Outputs whose weights are expanded to float32 at a time."""


class _Panels(ctypes.Structure):
    """PairPanels of weight_only.hpp."""

    _fields_ = (
        ("data", POINTER),
        ("scale", POINTER),
        ("zero_point", POINTER),
        ("table", POINTER),
        ("outputs", INT64),
        ("columns", INT64),
        ("padded", INT64),
        ("group", INT64),
        ("groups", INT64),
        ("bits", INT32),
        ("scale_type", INT32),
        ("down_columns", INT32),
    )


@dataclass(frozen=True)
class PairPanels:
    """A weight [outputs, columns] in panels of 16 outputs, two consecutive inputs side by side (`pack_pairs`).

    data: uint8, the panels. scale: float16 or float32, zero_point: int8 or None, [panels, groups, 16], or
    [groups, padded columns] where groups run down columns. table: float32 [2^bits], the lattice value of every code.
    bits: the panels' width, 8, 6, 4, 3 or 2. group: how many columns (outputs, if down_columns) share a scale.
    """

    data: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor | None
    table: torch.Tensor
    bits: int
    outputs: int
    columns: int
    group: int
    down_columns: bool
    _panels: _Panels = field(init=False, repr=False, compare=False)
    _address: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        panels = _Panels(
            self.data.data_ptr(),
            self.scale.data_ptr(),
            0 if self.zero_point is None else self.zero_point.data_ptr(),
            self.table.data_ptr(),
            self.outputs,
            self.columns,
            padded_columns(self.bits, self.columns),
            self.group,
            self.scale.shape[0] if self.down_columns else self.scale.shape[1],
            self.bits,
            NUMBERS[self.scale.dtype],
            int(self.down_columns),
        )
        object.__setattr__(self, "_panels", panels)
        object.__setattr__(self, "_address", ctypes.addressof(panels))

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies have memory of their own, so they need addresses of their own.
        parts = (self.data, self.scale, self.zero_point, self.table, self.bits, self.outputs, self.columns, self.group)
        return PairPanels, (*parts, self.down_columns)

    def codes(self) -> torch.Tensor:
        """The codes that the panels hold, uint8 [outputs, columns]."""
        codes = torch.empty(self.outputs, self.columns, dtype=torch.uint8)
        _functions().unpack(self.data.data_ptr(), self.outputs, self.columns, self.bits, codes.data_ptr())
        return codes


def pack_pairs(
    packed: torch.Tensor,
    bits: int,
    columns: int,
    table: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    granularity: Granularity,
) -> PairPanels:
    """Panels of a checkpoint's rows; codes of 5 and 7 bits are kept in panels of 6 and 8.

    packed: uint8 [rows, ⌈columns · bits / 8⌉] as `runtime.packing.pack` gives it, bits 2 … 8. table: the lattice value
    of every code, [2^bits]; see `code_table`. scale, zero_point: of the granularity's `parameter_shape`, zero points
    whole numbers or None. Scales that float16 holds exactly are kept in it.
    Raises ValueError for a wrong shape, dtype or device, for groups along rows that are no multiple of 32 and groups
    down columns that are no multiple of 16, and for values that bfloat16 does not hold (of 8 bits: tables that are not
    a sum over both halves of the code); RuntimeError where there are no kernels.
    """
    if bits not in CONTAINERS:
        raise ValueError(f"{bits} bits: codes have 2 to 8")
    rows, width = packed.shape[0], CONTAINERS[bits]
    if rows == 0 or columns == 0:
        raise ValueError(f"a weight of {rows} × {columns} has no panels")
    check_tensor("packed", packed, torch.uint8, (rows, packed_columns(columns, bits)))
    shape = parameter_shape((rows, columns), granularity)
    for name, part in (("scale", scale), ("zero_point", zero_point)):
        if part is not None and (part.shape != shape or not part.is_cpu):
            raise ValueError(f"{name} is {list(part.shape)} on {part.device}, needed is {list(shape)} on the CPU")
    group, down_columns = _groups(granularity, rows, columns, width)
    centre = 0 if zero_point is None else 2 ** (bits - 1)
    entries = _table(table, bits, width, centre)
    panels = -(-rows // PANEL_OUTPUTS)
    data = empty_panels(panel_bytes(width, rows, columns))
    _functions().pack(packed.data_ptr(), rows, columns, bits, width, data.data_ptr(), torch.get_num_threads())

    def in_order(part: torch.Tensor) -> torch.Tensor:
        if down_columns:
            missing = padded_columns(width, columns) - columns
            return torch.nn.functional.pad(part, (0, missing)).contiguous()
        part = torch.nn.functional.pad(part.expand(rows, -1), (0, 0, 0, panels * PANEL_OUTPUTS - rows))
        return part.reshape(panels, PANEL_OUTPUTS, -1).transpose(1, 2).contiguous()

    zero_points = None if zero_point is None else in_order(_whole_bytes(zero_point, centre))
    return PairPanels(
        data, in_order(_stored_scale(scale)), zero_points, entries, width, rows, columns, group, down_columns
    )


def weight_only_product(
    x: torch.Tensor,
    panels: PairPanels,
    bias: torch.Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
    level: str | None = None,
) -> torch.Tensor:
    """x · Ŵᵀ + bias, [rows, outputs] in `dtype`, by default that of x; sums are float32.

    x: float32, bfloat16 or float16 [rows, columns]. bias: float32 [outputs] or None. level: see `library.LEVELS`; None
    for the best. Raises ValueError for a wrong shape, dtype or device.
    """
    out_dtype = x.dtype if dtype is None else dtype
    if x.dtype not in NUMBERS or out_dtype not in NUMBERS:
        raise ValueError(f"products take and give float32, bfloat16 or float16, not {x.dtype} and {out_dtype}")
    if x.dim() != 2 or x.shape[1] != panels.columns or not x.is_cpu:
        raise ValueError(f"x is {list(x.shape)} on {x.device}, needed is [rows, {panels.columns}] on the CPU")
    if bias is not None:
        check_tensor("bias", bias, torch.float32, (panels.outputs,))
    if x.stride(1) != 1:
        x = x.contiguous()
    rows = x.shape[0]
    y = torch.empty(rows, panels.outputs, dtype=out_dtype)
    if rows == 0:
        return y
    missing = _functions().product(
        panels._address,
        x.data_ptr(),
        rows,
        x.stride(0),
        NUMBERS[x.dtype],
        0 if bias is None else bias.data_ptr(),
        y.data_ptr(),
        NUMBERS[out_dtype],
        torch.get_num_threads(),
        level_number(level),
    )
    if missing:
        _expanded_product(x, panels, bias, y, level)
    return y


def expand_rows(
    panels: PairPanels, first: int, count: int, dtype: torch.dtype = torch.float32, *, level: str | None = None
) -> torch.Tensor:
    """Rows first … first + count − 1 of the weight, [count, columns].

    In float32 they are what `numerics.quantizer.decode` gives, bit by bit; other dtypes are rounded from that.
    Raises ValueError for rows that the weight does not have.
    """
    if first < 0 or count < 0 or first + count > panels.outputs:
        raise ValueError(f"rows {first} … {first + count - 1} of a weight of {panels.outputs}")
    rows = torch.empty(count, panels.columns)
    _functions().expand(panels._address, first, count, rows.data_ptr(), torch.get_num_threads(), level_number(level))
    return rows.to(dtype)


def _expanded_product(
    x: torch.Tensor, panels: PairPanels, bias: torch.Tensor | None, y: torch.Tensor, level: str | None
) -> None:
    """The product with some rows of the weight after others in float32, into y."""
    values = x.float()
    for first in range(0, panels.outputs, EXPANDED_ROWS):
        end = min(first + EXPANDED_ROWS, panels.outputs)
        weight = expand_rows(panels, first, end - first, level=level)
        part = None if bias is None else bias[first:end]
        y[:, first:end] = torch.nn.functional.linear(values, weight, part)


def _groups(granularity: Granularity, rows: int, columns: int, width: int) -> tuple[int, bool]:
    """How many columns share a scale, or how many outputs and then True."""
    size = granularity.group_size or 0
    if granularity.kind in ("column", "column_group"):
        if granularity.kind == "column" or size >= rows:
            return -(-rows // PANEL_OUTPUTS) * PANEL_OUTPUTS, True
        if size % PANEL_OUTPUTS:
            raise ValueError(f"groups of {size} outputs have no panels, multiples of {PANEL_OUTPUTS} do")
        return size, True
    if granularity.kind != "row_group" or size >= columns:
        return padded_columns(width, columns), False
    if size % ROW_GROUP_UNIT:
        raise ValueError(f"groups of {size} columns have no panels, multiples of {ROW_GROUP_UNIT} do")
    return size, False


def _table(table: torch.Tensor, bits: int, width: int, centre: int) -> torch.Tensor:
    """float32 [2^width]: the values less `centre`, a straight line continued, anything else filled up with zeros."""
    if table.shape != (2**bits,):
        raise ValueError(f"the table of {bits} bits has {2**bits} values, not {list(table.shape)}")
    values = table.detach().cpu().float() - centre
    if width > bits:
        line = values[0] + torch.arange(2**width) * (values[1] - values[0])
        values = line if torch.equal(line[: 2**bits], values) else torch.cat([values, torch.zeros(2**width - 2**bits)])
    if width == 8:
        low, high = values[:16] - values[0], values[::16]
        if not torch.equal((high[:, None] + low).flatten(), values):
            raise ValueError("panels of 8 bits need values that are sums over both halves of the code: integers")
        parts = torch.cat([low, high])
    else:
        parts = values
    if not torch.equal(parts.bfloat16().float(), parts):
        raise ValueError("panels need values that bfloat16 holds exactly")
    return values.contiguous()


def _stored_scale(scale: torch.Tensor) -> torch.Tensor:
    half = scale.detach().to(torch.float16)
    return half if torch.equal(half.float(), scale.float()) else scale.detach().float()


def _whole_bytes(zero_point: torch.Tensor, centre: int) -> torch.Tensor:
    centred = zero_point.detach().float() - centre
    whole = centred.clamp(-128, 127).to(torch.int8)
    if not torch.equal(whole.float(), centred):
        raise ValueError(f"zero points are whole numbers {centre - 128} … {centre + 127}")
    return whole


@dataclass(frozen=True)
class _Functions:
    pack: Callable[..., int]
    unpack: Callable[..., int]
    product: Callable[..., int]
    expand: Callable[..., None]


@cache
def _functions() -> _Functions:
    library = kernels()
    pack, unpack = library.channelwise_pack_pairs, library.channelwise_unpack_pairs
    product, expand = library.channelwise_pair_product, library.channelwise_expand_pairs
    pack.argtypes = [POINTER, INT64, INT64, INT32, INT32, POINTER, INT32]
    unpack.argtypes = [POINTER, INT64, INT64, INT32, POINTER]
    product.argtypes = [
        POINTER, POINTER, INT64, INT64, INT32, POINTER, POINTER, INT32, INT32, INT32,
    ]  # fmt: skip
    expand.argtypes = [POINTER, INT64, INT64, POINTER, INT32, INT32]
    for function in (pack, unpack, product):
        function.restype = INT32
    expand.restype = None
    return _Functions(pack, unpack, product, expand)
