"""Layers computed by the CPU's own kernels: the weight stays packed at its width, in panels (`runtime.cpu`)."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from channelwise.numerics.floats import lattice_unit, power_of_two
from channelwise.numerics.granularity import Granularity
from channelwise.numerics.grids import FloatGrid, Grid
from channelwise.numerics.inputs import largest_code
from channelwise.numerics.transform import ChannelTransform
from channelwise.runtime.cpu import library
from channelwise.runtime.cpu.integer import QuadPanels, integer_product, integer_sums, pack_quads
from channelwise.runtime.cpu.operators import operators
from channelwise.runtime.cpu.quantize import (
    UNSIGNED_OFFSET,
    InputBytes,
    StaticQuantizer,
    static_bytes,
    static_quantizer,
    token_bytes,
)
from channelwise.runtime.cpu.weight_only import (
    PANEL_OUTPUTS,
    ROW_GROUP_UNIT,
    PairPanels,
    pack_pairs,
    weight_only_product,
)
from channelwise.runtime.encoding import StaticEncoder, TokenEncoder
from channelwise.runtime.execution import Execution, LinearParts
from channelwise.runtime.products import MAX_COLUMNS, onednn_is_exact
from channelwise.runtime.scheme import grid_numbers, is_asymmetric
from channelwise.runtime.sharing import SharesCodes
from channelwise.runtime.tables import byte_table, code_table, largest_power
from channelwise.runtime.whole import LARGEST_INT8, MIDDLE_OF_UINT8

FEW_ROWS = 16
"""Up to so many rows, inputs keep the precision of float32 on their way to the weight."""

LARGEST_EXACT, LARGEST_IN_FLOAT32 = 2**14, 2**22
"""Whole numbers up to which few rows of bfloat16, of float32 are exact: two and three digits of base 256, signed."""

HALVES = (torch.bfloat16, torch.float16)

FLOATS = (torch.float32, torch.bfloat16, torch.float16)

WIDEST_FLOAT = 6
LARGEST_POWER = 7
WHOLE_BYTE = 8

INTEGER_LEVELS = ("avx512", "amx")
"""Where the integer kernels are faster than any of torch's."""


@dataclass(frozen=True)
class WeightOnly:
    """Floating-point inputs with a packed weight. operator: the product for compiled code."""

    panels: PairPanels
    bias: torch.Tensor | None
    transform: ChannelTransform
    operator: Any

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See `Execution`; in the dtype of x."""
        dtype = x.dtype if x.dtype in FLOATS else torch.float32
        if not self.transform.is_identity:
            x = self.transform.apply(x.float())
            if len(x) > FEW_ROWS:
                x = x.to(dtype)
        elif x.dtype != dtype:
            x = x.to(dtype)
        return self.product(x, dtype)

    def product(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The product with x as it is, [tokens, out_features] in `dtype`."""
        if not torch.compiler.is_compiling():
            return weight_only_product(x, self.panels, self.bias, dtype=dtype)
        weight = self.panels
        return self.operator(
            x, weight.data, weight.scale, weight.zero_point, weight.table, self.bias, weight.bits, weight.outputs,
            weight.columns, weight.group, weight.down_columns, dtype,
        )  # fmt: skip

    def sums(self, x: torch.Tensor) -> torch.Tensor | None:
        """See `Execution`."""
        return None

    def stored_codes(self) -> torch.Tensor:
        """The weight's codes as they are stored, from 0 up."""
        return self.panels.codes()


@dataclass(frozen=True)
class PackedInteger(SharesCodes):
    """Inputs in bytes with a packed weight: what both kinds have in common.

    factor: what the sums are multiplied with, float32 [out_features]. table: the panels' value of every stored code,
    int8. offset: what is taken off the panels' values, int32 [out_features], or None. operator: the whole of it for
    compiled code, which takes the inputs' grid as `numbers`.
    """

    panels: QuadPanels
    table: torch.Tensor
    factor: torch.Tensor
    bias: torch.Tensor | None
    offset: torch.Tensor | None
    operator: Any
    numbers: list[int]

    def compiled(self, x: torch.Tensor) -> torch.Tensor:
        """The product for compiled code."""
        raise NotImplementedError

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See `Execution`; in the dtype of x."""
        return self.compiled(x) if torch.compiler.is_compiling() else self.product(self.bytes_of(x), _float_dtype(x))

    def product(self, inputs: InputBytes, dtype: torch.dtype) -> torch.Tensor:
        """The layer's output [tokens, out_features] for codes that are there already."""
        return integer_product(
            inputs.codes,
            self.panels,
            inputs.zero_point,
            self.factor,
            step=inputs.step,
            bias=self.bias,
            offset=self.offset,
            code_sums=inputs.code_sums,
            dtype=dtype,
        )

    def sums(self, x: torch.Tensor) -> torch.Tensor | None:
        """See `Execution`."""
        inputs = self.bytes_of(x)
        sums = integer_sums(
            inputs.codes, self.panels, inputs.zero_point, offset=self.offset, code_sums=inputs.code_sums
        )
        return sums.long()

    def stored_codes(self) -> torch.Tensor:
        """The weight's codes as they are stored, from 0 up."""
        return _stored_codes(self.panels, self.table)


@dataclass(frozen=True)
class PackedStatic(PackedInteger):
    """Integer product with static inputs; zero_point: of the bytes that the quantizer gives."""

    encoder: StaticEncoder
    quantizer: StaticQuantizer
    zero_point: int

    def bytes_of(self, x: torch.Tensor) -> InputBytes:
        """See `SharesCodes`."""
        codes, code_sums = static_bytes(_float(x), self.quantizer, self.panels.padded_columns)
        return InputBytes(codes, code_sums, None, self.zero_point)

    def compiled(self, x: torch.Tensor) -> torch.Tensor:
        """See `PackedInteger`."""
        weight, inputs = self.panels, self.quantizer
        return self.operator(
            _float(x), weight.data, weight.padded_sums, weight.table, self.factor, self.bias, self.offset,
            inputs.multiplier, inputs.offset, inputs.gain,
            weight.bits, weight.rows, weight.columns, self.zero_point, self.numbers, _float_dtype(x),
        )  # fmt: skip


@dataclass(frozen=True)
class PackedToken(PackedInteger):
    """Integer product with a step per token."""

    encoder: TokenEncoder

    def bytes_of(self, x: torch.Tensor) -> InputBytes:
        """See `SharesCodes`."""
        return token_bytes(_float(x), self.encoder.transform, self.encoder.grid, self.panels.padded_columns)

    def compiled(self, x: torch.Tensor) -> torch.Tensor:
        """See `PackedInteger`."""
        weight, transform = self.panels, self.encoder.transform
        return self.operator(
            _float(x), weight.data, weight.padded_sums, weight.table, self.factor, self.bias, self.offset,
            transform.shift, transform.scale,
            weight.bits, weight.rows, weight.columns, self.numbers, _float_dtype(x),
        )  # fmt: skip


@dataclass(frozen=True)
class PackedGroups:
    """Quantized inputs with a packed weight in groups: the weight-only product of whole numbers, which are exact in it.

    whole: the product of floating-point inputs, without bias. exact_in_bfloat16: whether the numbers of few rows are
    (`LARGEST_EXACT`); else they are given as float32.
    """

    whole: WeightOnly
    bias: torch.Tensor | None
    encoder: StaticEncoder | TokenEncoder
    exact_in_bfloat16: bool

    @property
    def panels(self) -> PairPanels:
        """The weight."""
        return self.whole.panels

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See `Execution`; in float32."""
        inputs = self.encoder(x)
        numbers = inputs.numbers()
        # Many rows of bfloat16 may meet weights that are rounded to it, as floating-point inputs of that dtype do.
        narrow = self.exact_in_bfloat16 if len(x) <= FEW_ROWS else x.dtype in HALVES
        y = self.whole.product(numbers.bfloat16() if narrow else numbers, torch.float32)
        return y * inputs.step if self.bias is None else torch.addcmul(self.bias, y, inputs.step)

    def sums(self, x: torch.Tensor) -> torch.Tensor | None:
        """See `Execution`."""
        return None

    def stored_codes(self) -> torch.Tensor:
        """The weight's codes as they are stored, from 0 up."""
        return self.panels.codes()


Packed = WeightOnly | PackedStatic | PackedToken | PackedGroups


def takes_integers() -> bool:
    """Whether products of codes are the kernels': below AVX-512 torch's are faster, where oneDNN does not saturate."""
    return library.level() in INTEGER_LEVELS or (library.level() == "avx2" and not onednn_is_exact())


def packed_execution(parts: LinearParts, encoder: StaticEncoder | TokenEncoder | None) -> Execution | None:
    """The layer on the CPU's kernels; None where there are none, or none for its scheme."""
    if parts.packed.device.type != "cpu" or not library.available():
        return None
    if encoder is None:
        return _weight_only(parts)
    integer = _integer(parts, encoder) if takes_integers() else None
    return integer or _in_groups(parts, encoder)


def _float(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype in FLOATS else x.float()


def _float_dtype(x: torch.Tensor) -> torch.dtype:
    return x.dtype if x.dtype in FLOATS else torch.float32


def _weight_only(parts: LinearParts) -> WeightOnly | None:
    weights, rows = parts.scheme.weights, parts.scheme.out_features
    columns = parts.scheme.in_features
    if not _has_pairs(weights.granularity, rows, columns) or _is_wide_float(weights.grid):
        return None
    grid, scale, zero_point = weights.grid, parts.weight.scale, parts.weight.zero_point
    panels = pack_pairs(parts.packed, grid.bits, columns, code_table(grid), scale, zero_point, weights.granularity)
    return WeightOnly(panels, parts.bias, parts.transform, operators().weight_only)


def _in_groups(parts: LinearParts, encoder: StaticEncoder | TokenEncoder) -> PackedGroups | None:
    """For weights that have no scale per output channel alone, and inputs that are whole numbers of 22 bits."""
    power = largest_power(parts.input_exponent)
    largest = max(largest_code(encoder.grid), 1) * 2**power
    if parts.scheme.weights.granularity.kind in ("tensor", "row") or largest > LARGEST_IN_FLOAT32:
        return None
    plain = replace(parts, bias=None, transform=ChannelTransform(None, None))
    whole = _weight_only(plain)
    if whole is None:
        return None
    # Down columns the numbers are multiplied by scales first.
    exact = largest <= LARGEST_EXACT and not whole.panels.down_columns
    return PackedGroups(whole, parts.bias, encoder, exact)


def _has_pairs(granularity: Granularity, rows: int, columns: int) -> bool:
    size = granularity.group_size or 0
    if granularity.kind == "row_group":
        return size % ROW_GROUP_UNIT == 0 or size >= columns
    return granularity.kind != "column_group" or size % PANEL_OUTPUTS == 0 or size >= rows


def _is_wide_float(grid: Grid) -> bool:
    """Floating-point numbers of more than 6 bits are looked up in no table."""
    return isinstance(grid, FloatGrid) and grid.bits > WIDEST_FLOAT


def _stored_codes(panels: QuadPanels, table: torch.Tensor) -> torch.Tensor:
    """What `pack` had packed, int16 [out_features, in_features]: panels of 8 bits hold values instead of codes."""
    held = panels.codes()
    if panels.bits != WHOLE_BYTE:
        return held
    codes = torch.zeros(256, dtype=torch.int16)
    used = table[:-1] if int(table[-1]) == 0 else table
    codes[used.long() + MIDDLE_OF_UINT8] = torch.arange(len(used), dtype=torch.int16)
    return codes[held.long() + MIDDLE_OF_UINT8]


def _static_zero_point(encoder: StaticEncoder | TokenEncoder) -> int | None:
    """That of the bytes which hold the codes; None where it is none of the codes, which is rare."""
    if is_asymmetric(encoder.grid):
        if isinstance(encoder, TokenEncoder) or encoder.zero_point is None:
            return 0
        zero_point = float(encoder.zero_point)
        return int(zero_point) if encoder.grid.lowest <= zero_point <= encoder.grid.highest else None
    return UNSIGNED_OFFSET


def _integer(parts: LinearParts, encoder: StaticEncoder | TokenEncoder) -> PackedStatic | PackedToken | None:
    """Where inputs and the weight's whole numbers fit into bytes, and the weight has a scale per output channel."""
    weights, columns, rows = parts.scheme.weights, parts.scheme.in_features, parts.scheme.out_features
    table = byte_table(weights.grid)
    if weights.granularity.kind not in ("tensor", "row") or table is None or columns > MAX_COLUMNS:
        return None
    power = largest_power(parts.input_exponent)
    limit = 255 if is_asymmetric(encoder.grid) else LARGEST_INT8
    if power > LARGEST_POWER or largest_code(encoder.grid) * 2**power > limit:
        return None
    zero_point = _static_zero_point(encoder)
    if zero_point is None:
        return None
    unit = lattice_unit(weights.grid) if isinstance(weights.grid, FloatGrid) else 1.0
    scale = parts.weight.scale.double().expand(rows, 1).reshape(-1) * unit
    offset = None
    if parts.weight.zero_point is not None:
        centred = parts.weight.zero_point.expand(rows, 1).reshape(-1) - 2 ** (weights.grid.bits - 1)
        offset = centred.to(torch.int32).contiguous()
    common: dict[str, Any] = {
        "panels": pack_quads(parts.packed, weights.grid.bits, columns, table),
        "table": table,
        "bias": parts.bias,
        "offset": offset,
        "numbers": grid_numbers(encoder.grid),
    }
    if isinstance(encoder, TokenEncoder):
        return PackedToken(encoder=encoder, factor=scale.float(), operator=operators().token_product, **common)
    largest = 0 if parts.input_exponent is None else int(parts.input_exponent.max())
    return PackedStatic(
        encoder=encoder,
        quantizer=static_quantizer(columns, encoder.multiplier, encoder.offset, encoder.grid, parts.input_exponent),
        zero_point=zero_point,
        factor=(scale * encoder.step.double() * power_of_two(torch.tensor(-largest))).float(),
        operator=operators().static_product,
        **common,
    )
