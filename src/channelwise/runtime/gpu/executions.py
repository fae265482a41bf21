"""A quantized linear layer on the GPU's kernels: integer products, weights only, and numbers with weights in groups."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from channelwise.numerics.floats import lattice_unit
from channelwise.numerics.grids import FloatGrid, Grid
from channelwise.numerics.inputs import largest_code
from channelwise.numerics.quantizer import Parameters
from channelwise.numerics.transform import ChannelTransform
from channelwise.runtime.encoding import StaticEncoder, TokenEncoder
from channelwise.runtime.execution import Execution, LinearParts
from channelwise.runtime.gpu import fusible
from channelwise.runtime.gpu.integer import WHOLE_BYTE, IntegerWeight, integer_product, pack_integer
from channelwise.runtime.gpu.layout import CONTAINERS
from channelwise.runtime.gpu.operators import Operators, operators
from channelwise.runtime.gpu.quantize import (
    UNSIGNED_CENTRE,
    InputBytes,
    StaticVectors,
    fits_bytes,
    static_bytes,
    static_vectors_of,
    token_bytes,
)
from channelwise.runtime.gpu.tiles import Tiles
from channelwise.runtime.gpu.weight_only import (
    DIGITS,
    LARGEST_NUMBER,
    InputDigits,
    NumberWeight,
    input_digits,
    pack_numbers,
    product_of_digits,
    weight_only_product,
)
from channelwise.runtime.products import MAX_COLUMNS
from channelwise.runtime.sharing import SharesCodes
from channelwise.runtime.tables import byte_table, largest_power

FLOATS = (torch.float32, torch.bfloat16, torch.float16)

LOOKED_UP_BITS = 4
"""Codes of floating-point grids that kernels look up; wider ones are kept as bytes, where their values are bytes."""


@dataclass(frozen=True, kw_only=True)
class Integer(SharesCodes):
    """Inputs in bytes with a packed weight: what both kinds have in common.

    factor: what the sums are multiplied with, float32 [outputs]. offset: what is taken off the weight's values, int32
    [outputs], or None. table: with 8 bits, the value of every stored code. operator: the product for compiled code.
    tiles: None for the usual ones.
    """

    weight: IntegerWeight
    factor: torch.Tensor
    bias: torch.Tensor | None
    offset: torch.Tensor | None
    table: torch.Tensor
    grid: Grid
    operator: Any
    tiles: Tiles | None = None

    @property
    def kind(self) -> str:
        """What `tiles.candidates` calls the product."""
        return "bytes" if self.weight.bits == WHOLE_BYTE else "strands"

    def fusible_bytes_of(self, x: torch.Tensor) -> InputBytes:
        """`bytes_of` in torch's own operations."""
        raise NotImplementedError

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See `Execution`; in the dtype of x."""
        if not torch.compiler.is_compiling():
            return self.product(self.bytes_of(x), _dtype(x))
        weight, inputs = self.weight, self.fusible_bytes_of(x)
        zero_points, zero_point = (None, inputs.zero_point)
        if isinstance(inputs.zero_point, torch.Tensor):
            zero_points, zero_point = inputs.zero_point, 0
        y: torch.Tensor = self.operator(
            inputs.codes, inputs.code_sums, inputs.step, zero_points, weight.data, weight.sums, self.factor, self.bias,
            self.offset, weight.bits, weight.exponent_bits, weight.columns, zero_point, _dtype(x),
        )  # fmt: skip
        return y

    def product(self, inputs: InputBytes, dtype: torch.dtype) -> torch.Tensor:
        """The layer's output [tokens, outputs] for codes that are there already."""
        return integer_product(
            inputs.codes,
            self.weight,
            inputs.zero_point,
            self.factor,
            step=inputs.step,
            bias=self.bias,
            offset=self.offset,
            code_sums=inputs.code_sums,
            dtype=dtype,
            tiles=self.tiles,
        )

    def sums(self, x: torch.Tensor) -> torch.Tensor | None:
        """See `Execution`."""
        inputs = self.bytes_of(x)
        sums = integer_product(
            inputs.codes, self.weight, inputs.zero_point, None, offset=self.offset, code_sums=inputs.code_sums
        )
        return sums.long()

    def stored_codes(self) -> torch.Tensor:
        """The weight's codes as they are stored, from 0 up."""
        held = self.weight.codes()
        return held if self.weight.bits != WHOLE_BYTE else _codes_of(held, self.table)


@dataclass(frozen=True, kw_only=True)
class Static(Integer):
    """Integer product with static inputs; zero_point: of the bytes."""

    vectors: StaticVectors
    zero_point: int

    def bytes_of(self, x: torch.Tensor) -> InputBytes:
        """See `SharesCodes`."""
        codes, code_sums = static_bytes(
            _rows(x), self.vectors, self.grid, self.weight.padded_columns, sums=self.offset is not None
        )
        return InputBytes(codes, code_sums, None, self.zero_point)

    def fusible_bytes_of(self, x: torch.Tensor) -> InputBytes:
        """See `Integer`."""
        return fusible.static_bytes(
            x, self.vectors, self.grid, self.weight.padded_columns, self.zero_point, sums=self.offset is not None
        )


@dataclass(frozen=True, kw_only=True)
class Token(Integer):
    """Integer product with a step per token."""

    transform: ChannelTransform

    def bytes_of(self, x: torch.Tensor) -> InputBytes:
        """See `SharesCodes`."""
        return token_bytes(
            _rows(x), self.transform, self.grid, self.weight.padded_columns, sums=self.offset is not None
        )

    def fusible_bytes_of(self, x: torch.Tensor) -> InputBytes:
        """See `Integer`."""
        return fusible.token_bytes(
            x, self.transform, self.grid, self.weight.padded_columns, sums=self.offset is not None
        )


@dataclass(frozen=True)
class WeightOnly(SharesCodes):
    """Floating-point inputs with a packed weight. table, tiles: see `Integer`. operators: for compiled code."""

    weight: NumberWeight
    bias: torch.Tensor | None
    transform: ChannelTransform
    table: torch.Tensor | None
    operators: Operators
    tiles: Tiles | None = None
    kind: ClassVar[str] = "digits"

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See `Execution`; in the dtype of x."""
        return self.of(_rows(x), _dtype(x))

    def of(self, x: torch.Tensor, dtype: torch.dtype, digits: int | None = None) -> torch.Tensor:
        """The layer's output [tokens, outputs] in `dtype`; digits: of an input, None for those of its dtype."""
        if not torch.compiler.is_compiling():
            return weight_only_product(x, self.weight, self.bias, self.transform, dtype, digits, self.tiles)
        weight, strands, count = self.weight, self.weight.strands, digits or DIGITS[x.dtype]
        y: torch.Tensor
        if weight.down or x.shape[0] > weight.most_fused or x.shape[0] == 0:
            y = self.operators.weight_only(
                x, strands.data, weight.scale, weight.zero, self.bias, self.transform.shift, self.transform.scale,
                strands.bits, strands.outputs, strands.columns, weight.group, weight.down, weight.centre,
                weight.exponent_bits, count, dtype,
            )  # fmt: skip
            return y
        inputs = fusible.input_digits(x, weight, self.transform, count)
        y = self.operators.product_of_digits(
            inputs.digits, inputs.step, inputs.weighed, strands.data, weight.scale, weight.zero, self.bias,
            strands.bits, strands.outputs, strands.columns, weight.group, weight.centre, weight.exponent_bits, dtype,
        )  # fmt: skip
        return y

    def bytes_of(self, x: torch.Tensor) -> InputDigits:
        """See `SharesCodes`."""
        return input_digits(_rows(x), self.weight, self.transform)

    def product(self, inputs: InputDigits, dtype: torch.dtype) -> torch.Tensor:
        """See `SharesCodes`."""
        return product_of_digits(inputs, self.weight, self.bias, self.transform, dtype, self.tiles)

    def sums(self, x: torch.Tensor) -> torch.Tensor | None:
        """See `Execution`."""
        return None

    def stored_codes(self) -> torch.Tensor:
        """The weight's codes as they are stored, from 0 up."""
        held = self.weight.strands.codes()
        return held if self.table is None else _codes_of(held, self.table)


@dataclass(frozen=True)
class Groups:
    """Quantized inputs with a packed weight in groups: the weight-only product of whole numbers, which are exact in it.

    whole: the product of floating-point inputs, without bias. digits: that hold the numbers.
    """

    whole: WeightOnly
    bias: torch.Tensor | None
    encoder: StaticEncoder | TokenEncoder
    digits: int

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See `Execution`; in float32."""
        inputs = self.encoder(x)
        y = self.whole.of(inputs.numbers(), torch.float32, self.digits)
        return y * inputs.step if self.bias is None else torch.addcmul(self.bias, y, inputs.step)

    def sums(self, x: torch.Tensor) -> torch.Tensor | None:
        """See `Execution`."""
        return None

    def stored_codes(self) -> torch.Tensor:
        """The weight's codes as they are stored, from 0 up."""
        return self.whole.stored_codes()


def gpu_execution(parts: LinearParts, encoder: StaticEncoder | TokenEncoder | None) -> Execution | None:
    """The layer on the GPU's kernels; None where there are none for its scheme."""
    if encoder is None:
        return _weight_only(parts)
    return _integer(parts, encoder) or _groups(parts, encoder)


def _codes_of(values: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """The stored codes that a table has these values for, int16."""
    # No weight has the code behind the highest, whose value is 0 too.
    used = table[:-1] if int(table[-1]) == 0 else table
    codes = torch.zeros(256, dtype=torch.int16, device=values.device)
    codes[used.long() + UNSIGNED_CENTRE] = torch.arange(len(used), dtype=torch.int16, device=values.device)
    return codes[values.long() + UNSIGNED_CENTRE]


def _rows(x: torch.Tensor) -> torch.Tensor:
    """x as the kernels read it."""
    x = x if x.dtype in FLOATS else x.float()
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def _dtype(x: torch.Tensor) -> torch.dtype:
    return x.dtype if x.dtype in FLOATS else torch.float32


def _integer(parts: LinearParts, encoder: StaticEncoder | TokenEncoder) -> Integer | None:
    """Where inputs and the weight's whole numbers are bytes, and the weight has a scale per output channel."""
    scheme, grid = parts.scheme, parts.scheme.weights.grid
    rows, columns, table = scheme.out_features, scheme.in_features, byte_table(grid)
    largest = largest_code(encoder.grid) * 2 ** largest_power(parts.input_exponent)
    if scheme.weights.granularity.kind not in ("tensor", "row") or table is None:
        return None
    if not 0 < columns <= MAX_COLUMNS or not fits_bytes(encoder.grid, largest):
        return None
    weight, offset = _integer_weight(parts, table.to(parts.packed.device))
    unit = lattice_unit(grid) if isinstance(grid, FloatGrid) else 1.0
    scale = parts.weight.scale.double().expand(rows, 1).reshape(-1) * unit
    common: dict[str, Any] = {
        "weight": weight,
        "bias": parts.bias,
        "offset": offset,
        "table": table.to(parts.packed.device),
        "grid": encoder.grid,
        "operator": operators().integer_product,
    }
    if isinstance(encoder, TokenEncoder):
        return Token(factor=scale.float(), transform=encoder.transform, **common)
    exponent = 0 if parts.input_exponent is None else int(parts.input_exponent.max())
    zero_point = 0 if encoder.zero_point is None else int(encoder.zero_point) - UNSIGNED_CENTRE
    return Static(
        factor=(scale * encoder.step.double() * 2.0**-exponent).float(),
        vectors=static_vectors_of(columns, encoder.multiplier, encoder.offset, encoder.grid, parts.input_exponent),
        zero_point=zero_point,
        **common,
    )


def _integer_weight(parts: LinearParts, table: torch.Tensor) -> tuple[IntegerWeight, torch.Tensor | None]:
    """The weight, and the offset of its values."""
    grid, rows = parts.scheme.weights.grid, parts.scheme.out_features
    stored = parts.codes - grid.lowest
    looked_up = isinstance(grid, FloatGrid)
    bits = CONTAINERS[grid.bits] if not looked_up or grid.bits == LOOKED_UP_BITS else WHOLE_BYTE
    zero = parts.weight.zero_point
    if isinstance(grid, FloatGrid):
        return pack_integer(stored, table[stored.long()], bits, grid.exponent_bits if bits < WHOLE_BYTE else 0), None
    middle = 2 ** (grid.bits - 1) if bits == WHOLE_BYTE else 0
    if zero is not None:
        offset: torch.Tensor | None = (zero.expand(rows, 1).reshape(-1) - middle).to(torch.int32)
    elif bits == WHOLE_BYTE:
        offset = None
    else:
        offset = torch.full((rows,), -grid.lowest, dtype=torch.int32, device=stored.device)
    values = table[stored.long()] if bits == WHOLE_BYTE else stored
    return pack_integer(stored, values, bits), offset


def _weight_only(parts: LinearParts) -> WeightOnly | None:
    weights = parts.scheme.weights
    grid, parameters = weights.grid, parts.weight
    if parts.scheme.in_features == 0 or parts.scheme.out_features == 0:
        return None
    table = byte_table(grid)
    if table is None:
        return None
    stored, table = parts.codes - grid.lowest, table.to(parts.packed.device)
    floating = isinstance(grid, FloatGrid)
    bits = CONTAINERS[grid.bits] if not floating or grid.bits == LOOKED_UP_BITS else WHOLE_BYTE
    centre, exponent_bits = 0 if floating else -grid.lowest, 0
    if isinstance(grid, FloatGrid):
        parameters = Parameters(parameters.scale * lattice_unit(grid))
        exponent_bits = grid.exponent_bits if bits < WHOLE_BYTE else 0
    if bits == WHOLE_BYTE:
        stored, centre = table[stored.long()], 0
        if parameters.zero_point is not None:
            parameters = Parameters(parameters.scale, parameters.zero_point - 2 ** (grid.bits - 1))
    packed = pack_numbers(stored, bits, parameters, weights.granularity, centre, exponent_bits)
    if packed is None:
        return None
    return WeightOnly(packed, parts.bias, parts.transform, table if bits == WHOLE_BYTE else None, operators())


def _groups(parts: LinearParts, encoder: StaticEncoder | TokenEncoder) -> Groups | None:
    """For weights that have no scale per output channel alone, or whose values are no bytes."""
    whole = _weight_only(replace(parts, bias=None, transform=ChannelTransform(None, None)))
    if whole is None:
        return None
    largest = max(largest_code(encoder.grid), 1) * 2 ** largest_power(parts.input_exponent)
    exact = [digits for digits, limit in LARGEST_NUMBER.items() if largest <= limit]
    # Down columns numbers are multiplied by scales first, and are whole no more.
    digits = max(LARGEST_NUMBER) if whole.weight.down else min(exact, default=0)
    return Groups(whole, parts.bias, encoder, digits) if exact else None
