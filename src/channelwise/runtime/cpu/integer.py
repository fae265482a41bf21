"""Products of unsigned 8-bit input codes with weights of 2 to 8 bits, exact in int32, kept packed at their width.

Signed input codes are taken plus 128, with a zero point of 128.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import torch

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

OUTPUT_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
SUMS = 3

TABLE_ENTRIES = 256
"""What packing looks codes of up to 8 bits up in."""

SHORT_TABLE_ENTRIES = 64
"""What products look codes of up to 6 bits up in."""

LOWEST_VALUE, HIGHEST_VALUE = -128, 127


class _Weight(ctypes.Structure):
    """channelwise_quad_panels of integer.hpp."""

    _fields_ = (
        ("panels", POINTER),
        ("sums", POINTER),
        ("table", POINTER),
        ("outputs", INT64),
        ("columns", INT64),
        ("padded_columns", INT64),
        ("bits", INT32),
    )


@dataclass(frozen=True)
class QuadPanels:
    """A weight [rows, columns] in panels of 16 outputs (`source/panels.hpp`).

    data: uint8, the panels. bits: their width, 8, 6, 4, 3 or 2. table: int8 [64], the value of every code, repeated;
    not read with 8 bits, where the bytes of data are the values. column_sums: int32 [rows], Σ_k value_ok;
    padded_sums: the same with zeros behind, for whole panels.
    """

    data: torch.Tensor
    bits: int
    rows: int
    columns: int
    table: torch.Tensor
    column_sums: torch.Tensor
    padded_sums: torch.Tensor = field(repr=False)
    _weight: _Weight = field(init=False, repr=False, compare=False)
    _address: int = field(init=False, repr=False, compare=False)
    _padded: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        padded = padded_columns(self.bits, self.columns)
        weight = _Weight(
            self.data.data_ptr(),
            self.padded_sums.data_ptr(),
            self.table.data_ptr(),
            self.rows,
            self.columns,
            padded,
            self.bits,
        )
        object.__setattr__(self, "_weight", weight)
        object.__setattr__(self, "_address", ctypes.addressof(weight))
        object.__setattr__(self, "_padded", padded)

    @property
    def padded_columns(self) -> int:
        """Columns of the input codes that the product takes."""
        return self._padded

    def codes(self) -> torch.Tensor:
        """The codes (with 8 bits the values) that the panels hold, int16 [rows, columns]."""
        codes = torch.empty(self.rows, self.columns, dtype=torch.int16)
        _functions().unpack(
            self.data.data_ptr(), self.rows, self.columns, self.bits, codes.data_ptr(), torch.get_num_threads()
        )
        return codes


def pack_quads(packed: torch.Tensor, bits: int, columns: int, table: torch.Tensor) -> QuadPanels:
    """Panels of a checkpoint's rows; codes of 5 and 7 bits are kept in panels of 6 and 8.

    packed: uint8 [rows, ⌈columns · bits / 8⌉] as `runtime.packing.pack` gives it, bits 2 … 8. table: the value of every
    code, whole numbers −128 … 127 of any integer dtype [2^bits].
    Raises ValueError for a wrong shape, dtype or device and for no columns, RuntimeError where there are no kernels.
    """
    if bits not in CONTAINERS:
        raise ValueError(f"{bits} bits: codes have 2 to 8")
    if columns < 1:
        raise ValueError("a weight has one column or more")
    check_tensor("packed", packed, torch.uint8, (packed.shape[0], packed_columns(columns, bits)))
    container, rows = CONTAINERS[bits], packed.shape[0]
    entries = _table(table, bits)
    data = empty_panels(panel_bytes(container, rows, columns))
    sums = torch.zeros(-(-rows // PANEL_OUTPUTS) * PANEL_OUTPUTS, dtype=torch.int32)
    _functions().pack(
        packed.data_ptr(), packed.shape[1], rows, columns, bits, container, entries.data_ptr(), data.data_ptr(),
        sums.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return QuadPanels(data, container, rows, columns, entries[:SHORT_TABLE_ENTRIES], sums[:rows], sums)


def integer_product(
    codes: torch.Tensor,
    weight: QuadPanels,
    zero_point: int | torch.Tensor,
    factor: torch.Tensor,
    *,
    step: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    offset: torch.Tensor | None = None,
    code_sums: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    level: str | None = None,
) -> torch.Tensor:
    """y_mo = exact_mo · factor_o · step_m + bias_o, exact_mo = Σ_k (u_mk − zero_point_m) · (value_ok − offset_o).

    The sums are integers modulo 2^32 (exact up to 2^16 columns); they are rounded to float32 once, and each operation
    after that once more. codes: uint8 [tokens, padded columns], zeros in the padding. zero_point: one for all, or int32
    [tokens]. factor: float32 [rows]. step: float32 [tokens], bias: float32 [rows], offset: int32 [rows]; None for ones
    and zeros. code_sums: int32 [tokens], Σ_k u_mk, needed with an offset. dtype: that of the result [tokens, rows],
    float32, bfloat16 or float16. level: see `library.LEVELS`; None for the best.
    Raises ValueError for a wrong shape, dtype or device.
    """
    if dtype not in OUTPUT_TYPES:
        raise ValueError(f"products come in float32, bfloat16 or float16, not {dtype}")
    check_tensor("factor", factor, torch.float32, (weight.rows,))
    y = torch.empty(codes.shape[0], weight.rows, dtype=dtype)
    _multiply(codes, weight, zero_point, offset, code_sums, factor, step, bias, y, OUTPUT_TYPES[dtype], level)
    return y


def integer_sums(
    codes: torch.Tensor,
    weight: QuadPanels,
    zero_point: int | torch.Tensor,
    *,
    offset: torch.Tensor | None = None,
    code_sums: torch.Tensor | None = None,
    level: str | None = None,
) -> torch.Tensor:
    """The sums exact_mo of `integer_product`, int32 [tokens, rows]; the same arguments and errors."""
    sums = torch.empty(codes.shape[0], weight.rows, dtype=torch.int32)
    _multiply(codes, weight, zero_point, offset, code_sums, None, None, None, sums, SUMS, level)
    return sums


def _multiply(
    codes: torch.Tensor,
    weight: QuadPanels,
    zero_point: int | torch.Tensor,
    offset: torch.Tensor | None,
    code_sums: torch.Tensor | None,
    factor: torch.Tensor | None,
    step: torch.Tensor | None,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    kind: int,
    level: str | None,
) -> None:
    tokens = codes.shape[0]
    check_tensor("codes", codes, torch.uint8, (tokens, weight._padded))
    zero_points = 0
    if isinstance(zero_point, torch.Tensor):
        check_tensor("zero_point", zero_point, torch.int32, (tokens,))
        zero_points, zero_point = zero_point.data_ptr(), 0
    if offset is not None and code_sums is None:
        raise ValueError("an offset of the weight needs code_sums")
    _functions().product(
        weight._address,
        codes.data_ptr(),
        tokens,
        zero_point,
        zero_points,
        _pointer("code_sums", code_sums, torch.int32, tokens),
        _pointer("offset", offset, torch.int32, weight.rows),
        0 if factor is None else factor.data_ptr(),
        _pointer("step", step, torch.float32, tokens),
        _pointer("bias", bias, torch.float32, weight.rows),
        out.data_ptr(),
        kind,
        level_number(level),
        torch.get_num_threads(),
    )


def _pointer(name: str, vector: torch.Tensor | None, dtype: torch.dtype, size: int) -> int:
    if vector is None:
        return 0
    check_tensor(name, vector, dtype, (size,))
    return vector.data_ptr()


def _table(table: torch.Tensor, bits: int) -> torch.Tensor:
    """int8 [256]: the codes' values, repeated."""
    if table.shape != (2**bits,) or table.is_floating_point():
        raise ValueError(f"the table of {bits} bits has {2**bits} whole numbers, not {table.dtype} {list(table.shape)}")
    whole = table.to(torch.int64).cpu()
    if bool(((whole < LOWEST_VALUE) | (whole > HIGHEST_VALUE)).any()):
        raise ValueError("a table's values are −128 … 127")
    return whole.to(torch.int8).repeat(TABLE_ENTRIES // whole.shape[0]).contiguous()


@dataclass(frozen=True)
class _Functions:
    pack: Callable[..., None]
    unpack: Callable[..., None]
    product: Callable[..., None]


@cache
def _functions() -> _Functions:
    library = kernels()
    pack, unpack = library.channelwise_pack_quads, library.channelwise_unpack_quads
    product = library.channelwise_integer_product
    pack.argtypes = [POINTER, INT64, INT64, INT64, INT32, INT32, POINTER, POINTER, POINTER, INT32]
    unpack.argtypes = [POINTER, INT64, INT64, INT32, POINTER, INT32]
    product.argtypes = [POINTER, POINTER, INT64, INT32, *([POINTER] * 7), INT32, INT32, INT32]
    for function in (pack, unpack, product):
        function.restype = None
    return _Functions(pack, unpack, product)
