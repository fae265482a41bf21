"""Products of floating-point inputs with packed weights on the GPU, scales along rows or down columns."""

import math
from dataclasses import dataclass

import torch
import triton

from channelwise.numerics.granularity import Granularity
from channelwise.numerics.quantizer import Parameters
from channelwise.numerics.transform import ChannelTransform
from channelwise.runtime.gpu.device import on_device
from channelwise.runtime.gpu.kernels import weight_only as kernels
from channelwise.runtime.gpu.layout import NARROWEST, PANEL_OUTPUTS, PLACES, STRANDS, Strands, pack_strands
from channelwise.runtime.gpu.tiles import Tiles, tiles_of_digits

WIDTHS = {8: 128, 6: 64, 4: 128, 3: 64, 2: 64}
"""Columns of a strand where groups do not ask for less: 128 to 512 in a block."""

MOST_FUSED, MOST_FUSED_DOWN = 256, 64
"""Beyond so many tokens it takes less time to make the weight a matrix first; down columns every group of outputs has
numbers of its own."""

DIGITS = {torch.bfloat16: 2, torch.float16: 2, torch.float32: 3}
"""Of base 256, signed, that an input of a dtype is made."""

LARGEST_NUMBER = {2: 127 * 257, 3: 2**22}
"""By digits: the largest whole number; three would hold more, but float32 rounds to whole numbers up to 2^22 only."""

REACH = {2: 14, 3: 21}
"""By digits: how many binary places below that of the largest input the step lies."""

DIGIT_COLUMNS = {2: 2, 3: 4}
"""By digits: columns of a tile for those of one input, a power of two."""

MATRIX_OUTPUTS = 64

WHOLE = 2**30
"""The size of a group that holds a whole row or column."""

PIECES = {torch.bfloat16: 1, torch.float16: 2, torch.float32: 3}
"""bfloat16 numbers whose sum is a number of a dtype."""

TRANSFORMED_PIECES = {torch.bfloat16: 2, torch.float16: 2, torch.float32: 3}
"""The same after a transform or the scales of columns, up to 2^-17 of inputs of 16 bits."""


@dataclass(frozen=True)
class NumberWeight:
    """A weight [outputs, columns] for products with floating-point inputs: value = (code − zero) · scale.

    strands: the codes. scale, zero: along rows [groups, outputs], one for `group` columns, filled up as the strands
    are; down columns [groups, columns], one for `group` outputs; zero int8 or None, then `centre` is taken off every
    code. exponent_bits: those of the floating-point grid that codes of 4 bits are looked up on, else 0.
    """

    strands: Strands
    scale: torch.Tensor
    zero: torch.Tensor | None
    group: int
    down: bool
    centre: int
    exponent_bits: int

    @property
    def most_fused(self) -> int:
        """Up to so many tokens meet codes; for more the weight is made a matrix."""
        return MOST_FUSED_DOWN if self.down else MOST_FUSED

    @property
    def together(self) -> int:
        """Strands of a span: those whose sums are scaled together."""
        strands = STRANDS[self.strands.bits]
        return strands if self.down else min(strands, self.group // self.strands.width)

    @property
    def span(self) -> int:
        """Columns of a span."""
        return self.together * self.strands.width


@dataclass(frozen=True)
class InputDigits:
    """Inputs as whole numbers; or, where there are so many that the weight is made a matrix, x [tokens, columns] alone.

    digits: int8 [groups, count, tokens, padded columns], the highest first; step: float32 [groups, tokens, spans], the
    value of 1; weighed: their sums over spans, of the same shape, down columns weighed by zero points, of two digits
    int32, else float32. groups: 1, or down columns those of outputs. count: digits of a number, 2 or 3.
    """

    tokens: int
    x: torch.Tensor | None
    digits: torch.Tensor | None
    step: torch.Tensor | None
    weighed: torch.Tensor | None
    count: int


def strand_width(bits: int, outputs: int, columns: int, granularity: Granularity) -> int | None:
    """The columns of a strand for groups of this kind; None where the groups fit no strands, or no tiles."""
    widest = WIDTHS[bits]
    size = granularity.group_size or 0
    if granularity.kind == "row_group" and size < columns:
        width = math.gcd(size, widest)
        block = width * STRANDS[bits]
        # Sums are scaled at the end of strands, so a block holds whole groups or a group whole blocks.
        return width if width >= NARROWEST and (size % block == 0 or block % size == 0) else None
    if granularity.kind == "column_group" and size < outputs and size % PANEL_OUTPUTS:
        return None
    return widest


def pack_numbers(
    codes: torch.Tensor,
    bits: int,
    parameters: Parameters,
    granularity: Granularity,
    centre: int,
    exponent_bits: int = 0,
) -> NumberWeight | None:
    """codes: integers [outputs, columns], 0 … 2^bits − 1, with 8 bits −128 … 127; centre: see `NumberWeight`.

    parameters: of the granularity; their zero points count as the codes do. None where the groups fit no strands.
    """
    outputs, columns = codes.shape
    width = strand_width(bits, outputs, columns, granularity)
    if width is None:
        return None
    down = granularity.kind in ("column", "column_group")
    size = granularity.group_size or (outputs if down else columns)
    group = WHOLE if size >= (outputs if down else columns) else size
    strands = pack_strands(codes, bits, width)

    def in_order(part: torch.Tensor) -> torch.Tensor:
        if down:
            return part.contiguous()
        groups = part.expand(outputs, -1).t()
        behind, below = strands.padded_outputs - outputs, -(-strands.padded_columns // group) - len(groups)
        return torch.nn.functional.pad(groups, (0, behind, 0, below)).contiguous()

    zero = None if parameters.zero_point is None else in_order(parameters.zero_point.to(torch.int8))
    scale = in_order(_stored_scale(parameters.scale))
    return NumberWeight(strands, scale, zero, group, down, centre, exponent_bits)


def weight_only_product(
    x: torch.Tensor,
    weight: NumberWeight,
    bias: torch.Tensor | None,
    transform: ChannelTransform,
    dtype: torch.dtype,
    digits: int | None = None,
    tiles: Tiles | None = None,
) -> torch.Tensor:
    """transform(x) · Ŵᵀ + bias, [tokens, outputs] in `dtype`.

    x: float32, bfloat16 or float16 [tokens, columns], columns next to each other. bias: float32 [outputs] or None.
    digits: of an input, None for those of its dtype. What is lost is at most 1.0041 · 2^-15 (three digits: 2^-22) of
    the largest input of a span, after the transform and the scales of columns; and with more tokens than `MOST_FUSED`,
    where the weight is rounded to the dtype of x instead.
    """
    inputs = input_digits(x, weight, transform, digits, fused=True if tiles is not None else None)
    return product_of_digits(inputs, weight, bias, transform, dtype, tiles)


def input_digits(
    x: torch.Tensor,
    weight: NumberWeight,
    transform: ChannelTransform,
    digits: int | None = None,
    fused: bool | None = None,
) -> InputDigits:
    """Inputs as whole numbers, for this weight and others that are packed alike and have no scales down columns.

    x, transform, digits: see `weight_only_product`. fused: None where the number of tokens decides.
    """
    tokens, strands = x.shape[0], weight.strands
    if fused is None:
        fused = tokens <= weight.most_fused
    count = digits or DIGITS[x.dtype]
    if not fused or x.numel() == 0:
        return InputDigits(tokens, x, None, None, None, count)
    groups = len(weight.scale) if weight.down else 1
    spans = strands.padded_columns // weight.span
    whole = torch.empty(groups, count, tokens, strands.padded_columns, dtype=torch.int8, device=x.device)
    step = torch.empty(groups, tokens, spans, dtype=torch.float32, device=x.device)
    weighed = torch.empty_like(step, dtype=torch.int32 if count == 2 else torch.float32)
    with on_device(x.device):
        kernels.whole_numbers[(spans, tokens, groups)](
            x, transform.shift, transform.scale, weight.scale if weight.down else None,
            weight.zero if weight.down else None, whole, step, weighed, tokens, x.stride(0), COLUMNS=strands.columns,
            SPANS=spans, SPAN=weight.span, DIGITS=count, REACH=REACH[count], LARGEST=float(LARGEST_NUMBER[count]),
            num_warps=1, enable_fp_fusion=False,
        )  # fmt: skip
    return InputDigits(tokens, None, whole, step, weighed, count)


def product_of_digits(
    inputs: InputDigits,
    weight: NumberWeight,
    bias: torch.Tensor | None,
    transform: ChannelTransform,
    dtype: torch.dtype,
    tiles: Tiles | None = None,
) -> torch.Tensor:
    """`weight_only_product` of inputs that are whole numbers already, or of many that meet a matrix."""
    if inputs.x is not None:
        return _through_matrix(inputs.x, weight, bias, transform, dtype)
    assert inputs.digits is not None
    tokens, outputs = inputs.tokens, weight.strands.outputs
    y = torch.empty(tokens, outputs, dtype=dtype, device=inputs.digits.device)
    if tiles is None:
        group = weight.group if weight.down else None
        tiles = tiles_of_digits(tokens, weight.strands.shape, DIGIT_COLUMNS[inputs.count], group)
    grid = (triton.cdiv(outputs, tiles.outputs), triton.cdiv(tokens, tiles.tokens))
    with on_device(y.device):
        kernels.product_of_digits[grid](
            inputs.digits, inputs.step, inputs.weighed, weight.strands.data, y, weight.scale, weight.zero, bias, tokens,
            **_constants(weight), TOGETHER=weight.together, DIGITS=inputs.count,
            DIGIT_COLUMNS=DIGIT_COLUMNS[inputs.count], FULL=tokens % tiles.tokens == 0, TOKENS=tiles.tokens,
            OUTPUT_TILE=tiles.outputs, SPLITS=tiles.splits, num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip
    return y


def weight_matrix(weight: NumberWeight, dtype: torch.dtype) -> torch.Tensor:
    """The weight [outputs, columns], rounded once from float32 to `dtype`."""
    outputs, columns = weight.strands.outputs, weight.strands.columns
    matrix = torch.empty(outputs, columns, dtype=dtype, device=weight.strands.data.device)
    if matrix.numel():
        grid = (triton.cdiv(outputs, MATRIX_OUTPUTS), weight.strands.data.shape[1])
        with on_device(matrix.device):
            kernels.matrix[grid](
                weight.strands.data, matrix, weight.scale, weight.zero, **_constants(weight), OUTPUT_TILE=MATRIX_OUTPUTS
            )
    return matrix


def _through_matrix(
    x: torch.Tensor,
    weight: NumberWeight,
    bias: torch.Tensor | None,
    transform: ChannelTransform,
    dtype: torch.dtype,
) -> torch.Tensor:
    values = x if transform.is_identity else transform.apply(x.float()).to(x.dtype)
    added = None if bias is None else bias.to(x.dtype)
    return torch.nn.functional.linear(values, weight_matrix(weight, x.dtype), added).to(dtype)


def _constants(weight: NumberWeight) -> dict[str, int | bool]:
    strands = weight.strands
    return {
        "OUTPUTS": strands.outputs, "PADDED_OUTPUTS": strands.padded_outputs, "COLUMNS": strands.columns,
        "BLOCKS": strands.data.shape[1], "BITS": strands.bits, "EXPONENT_BITS": weight.exponent_bits,
        "CENTRE": weight.centre, "GROUP": weight.group, "DOWN": weight.down,
        "STRANDS": STRANDS[strands.bits], "PLACES": PLACES[strands.bits], "WIDTH": strands.width,
    }  # fmt: skip


def _stored_scale(scale: torch.Tensor) -> torch.Tensor:
    """In 16 bits where they hold it, as scales of groups are stored."""
    half = scale.to(torch.float16)
    return half if torch.equal(half.float(), scale.float()) else scale.float()
