"""Products of floating-point inputs with packed weights, and packed weights made a matrix.

Inputs are made whole numbers first: over some columns (a span) they share a step, a power of two, and two or three
signed digits of base 256 hold them. Their products with codes are then exact sums of the tensor cores; steps, scales
and zero points come after them, once for each span.

Of few tokens the digits are columns of one tile, beside those of other tokens and of other splits (`tiling`), so that
the tensor cores, which take eight columns at least, multiply nothing in vain.
"""

import triton
import triton.language as tl

from channelwise.runtime.gpu.kernels.bits import values
from channelwise.runtime.gpu.kernels.quantize import EXPONENT_MASK, HALF_WAY, SMALLEST_STEP, transformed
from channelwise.runtime.gpu.kernels.tiling import joined, loaded, panel_bytes


@triton.jit
def whole_numbers(
    x, shift, channel_scale, scale, zero, digits, step, weighed, tokens, x_stride, COLUMNS: tl.constexpr,
    SPANS: tl.constexpr, SPAN: tl.constexpr, DIGITS: tl.constexpr, REACH: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    """Inputs as digits, a program for one span of one token: (x − shift) / channel_scale, times a column's scale.

    scale, zero: [groups, COLUMNS] of the groups down columns, for each of which there are numbers of its own; None
    without. digits: int8 [groups, DIGITS, tokens, SPANS · SPAN], the highest first; step: float32 [groups, tokens,
    SPANS], the value of 1; weighed: of the same shape, Σ numbers · zero (without zero points Σ numbers), of two digits
    int32, which holds it, else float32.
    REACH: 2^REACH steps are the power of two of the largest. LARGEST: the largest number that the digits hold.
    """
    span, token, group = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    j = span * SPAN + tl.arange(0, SPAN)
    inside = j < COLUMNS
    value = tl.load(x + token.to(tl.int64) * x_stride + j, mask=inside, other=0.0).to(tl.float32)
    value = transformed(value, shift, channel_scale, j, inside)
    if scale is not None:
        value = value * tl.load(scale + group * COLUMNS + j, mask=inside, other=0.0).to(tl.float32)
    value = tl.where(inside, value, 0.0)
    largest = tl.max(tl.abs(value), 0)
    power = (largest.to(tl.int32, bitcast=True) & EXPONENT_MASK).to(tl.float32, bitcast=True)
    # Below, a step would be no normal number; its inverse, by which numbers are multiplied, has to be one too.
    own = tl.maximum(power * 2.0**-REACH, SMALLEST_STEP)
    own = tl.where(largest > LARGEST * own, 2.0 * own, own)
    number = ((value * (1.0 / own) + HALF_WAY) - HALF_WAY).to(tl.int32)
    at = (group * tokens + token) * SPANS + span
    tl.store(step + at, own)
    total = number
    if zero is not None:
        total = number * tl.load(zero + group * COLUMNS + j, mask=inside, other=0).to(tl.int32)
    tl.store(weighed + at, tl.sum(total if DIGITS == 2 else total.to(tl.float32), 0))
    for digit in tl.static_range(DIGITS):
        # From the lowest up, which lies last.
        row = (group * DIGITS + DIGITS - 1 - digit).to(tl.int64) * tokens + token
        tl.store(digits + row * (SPANS * SPAN) + j, ((number + 128) % 256 - 128).to(tl.int8))
        number = (number + 128) >> 8


@triton.jit
def of_digits(sums, ROWS: tl.constexpr, PAIRS: tl.constexpr, DIGITS: tl.constexpr):
    """Sums for digits, next to each other, as sums for numbers [ROWS, PAIRS]: int32 of two digits, else float32."""
    if DIGITS == 2:
        high, low = tl.split(tl.reshape(sums, [ROWS, PAIRS, 2]))
        return high * 256 + low
    else:
        high, low = tl.split(tl.reshape(sums, [ROWS, 2 * PAIRS, 2]))
        first, others = tl.split(tl.reshape(high * 256 + low, [ROWS, PAIRS, 2]))
        return first.to(tl.float32) * 65536.0 + others.to(tl.float32)


@triton.jit
def product_of_digits(
    digits, step, weighed, weight, y, scale, zero, bias, tokens,
    OUTPUTS: tl.constexpr, PADDED_OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr, BLOCKS: tl.constexpr,
    BITS: tl.constexpr, EXPONENT_BITS: tl.constexpr, CENTRE: tl.constexpr, GROUP: tl.constexpr, DOWN: tl.constexpr,
    STRANDS: tl.constexpr, PLACES: tl.constexpr, WIDTH: tl.constexpr, TOGETHER: tl.constexpr, DIGITS: tl.constexpr,
    DIGIT_COLUMNS: tl.constexpr, FULL: tl.constexpr, TOKENS: tl.constexpr, OUTPUT_TILE: tl.constexpr,
    SPLITS: tl.constexpr,
):  # fmt: skip
    """A tile [outputs, tokens] of x · Ŵᵀ + bias, Ŵ = (code − zero) · scale, with x from `whole_numbers`.

    CENTRE: what is taken off codes without zero points. DOWN: GROUP outputs share the scales and zero points of
    columns, which are in the numbers already; otherwise GROUP columns share those of an output, [groups,
    PADDED_OUTPUTS]. TOGETHER: strands of a span. DIGIT_COLUMNS: of an input's digits, zeros before three. FULL: whether
    tiles of tokens are. SPLITS: see `tiling`.
    """
    PARTS: tl.constexpr = STRANDS // TOGETHER
    SPAN: tl.constexpr = TOGETHER * WIDTH
    PADDED: tl.constexpr = BLOCKS * STRANDS * WIDTH
    ROWS: tl.constexpr = SPLITS * OUTPUT_TILE
    PAIRS: tl.constexpr = SPLITS * TOKENS
    EVEN: tl.constexpr = BLOCKS % SPLITS == 0
    ROWS_ARE_THERE: tl.constexpr = EVEN and PADDED_OUTPUTS % OUTPUT_TILE == 0
    row = tl.arange(0, ROWS)[:, None]
    n, row_block = tl.program_id(0) * OUTPUT_TILE + row % OUTPUT_TILE, row // OUTPUT_TILE
    pair = tl.arange(0, PAIRS)[None, :]
    pair_m, pair_block = tl.program_id(1) * TOKENS + pair % TOKENS, pair // TOKENS
    column = tl.arange(0, PAIRS * DIGIT_COLUMNS)[None, :]
    digit = column % DIGIT_COLUMNS - (DIGIT_COLUMNS - DIGITS)
    m = tl.program_id(1) * TOKENS + column // DIGIT_COLUMNS % TOKENS
    column_block = column // (DIGIT_COLUMNS * TOKENS)
    j = tl.arange(0, WIDTH)
    own = 0
    if DOWN:
        own = tl.program_id(0) * OUTPUT_TILE // GROUP
    bytes_ = panel_bytes(weight, n, j[None, :], BLOCKS, PLACES, WIDTH) + row_block * (PLACES * 16 * WIDTH)
    inputs = digits + ((own * DIGITS + digit) * tokens + m).to(tl.int64) * PADDED + j[:, None]
    inputs += column_block * (STRANDS * WIDTH)
    spans = (own * tokens + pair_m) * (BLOCKS * PARTS) + pair_block * PARTS
    result = tl.zeros([ROWS, PAIRS], tl.float32)
    for turn in range((BLOCKS + SPLITS - 1) // SPLITS):
        first = turn * SPLITS
        row_there = (n < PADDED_OUTPUTS) & (first + row_block < BLOCKS)
        pair_there = (pair_m < tokens) & (first + pair_block < BLOCKS)
        column_there = (m < tokens) & (first + column_block < BLOCKS) & (digit >= 0)
        # Asked for before the products, needed behind them: these wait for memory in their shade.
        steps, weights_of, scales, zeros = (), (), (), ()
        for part in tl.static_range(PARTS):
            span = spans + first * PARTS + part
            steps = steps + (loaded(step + span, pair_there, EVEN and FULL),)
            weights_of = weights_of + (loaded(weighed + span, pair_there, EVEN and FULL),)
            if not DOWN:
                group = ((first + row_block) * PARTS + part) * SPAN // GROUP
                scales = scales + (loaded(scale + group * PADDED_OUTPUTS + n, row_there, ROWS_ARE_THERE),)
                if zero is not None:
                    zeros = zeros + (loaded(zero + group * PADDED_OUTPUTS + n, row_there, ROWS_ARE_THERE),)
        at = bytes_ + first * (PLACES * 16 * WIDTH)
        packed = loaded(at, row_there, ROWS_ARE_THERE)
        second, third = packed, packed
        if PLACES == 3:
            second = loaded(at + 16 * WIDTH, row_there, ROWS_ARE_THERE)
            third = loaded(at + 32 * WIDTH, row_there, ROWS_ARE_THERE)
        for part in tl.static_range(PARTS):
            sums = tl.zeros([ROWS, PAIRS * DIGIT_COLUMNS], tl.int32)
            for strand in tl.static_range(TOGETHER):
                right = loaded(
                    inputs + (first * STRANDS + part * TOGETHER + strand) * WIDTH, column_there,
                    EVEN and FULL and DIGITS == 2,
                )  # fmt: skip
                left = values(packed, second, third, BITS, EXPONENT_BITS, part * TOGETHER + strand)
                sums = tl.dot(left, right, sums, out_dtype=tl.int32)
            numbers = of_digits(sums, ROWS, PAIRS, DIGITS)
            if DOWN and zero is not None:
                numbers -= weights_of[part]
            elif zero is not None:
                numbers -= zeros[part].to(tl.int32) * weights_of[part]
            elif CENTRE != 0:
                numbers -= CENTRE * weights_of[part]
            products = numbers.to(tl.float32) * steps[part]
            if not DOWN:
                products *= scales[part].to(tl.float32)
            result += products
    y_tile = joined(result, SPLITS, OUTPUT_TILE, TOKENS)
    n = tl.program_id(0) * OUTPUT_TILE + tl.arange(0, OUTPUT_TILE)[:, None]
    m = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)[None, :]
    if bias is not None:
        y_tile += tl.load(bias + n, mask=n < OUTPUTS, other=0.0)
    tl.store(y + m.to(tl.int64) * OUTPUTS + n, y_tile.to(y.dtype.element_ty), mask=(n < OUTPUTS) & (m < tokens))


@triton.jit
def matrix(
    weight, y, scale, zero,
    OUTPUTS: tl.constexpr, PADDED_OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr, BLOCKS: tl.constexpr,
    BITS: tl.constexpr, EXPONENT_BITS: tl.constexpr, CENTRE: tl.constexpr, GROUP: tl.constexpr, DOWN: tl.constexpr,
    STRANDS: tl.constexpr, PLACES: tl.constexpr, WIDTH: tl.constexpr, OUTPUT_TILE: tl.constexpr,
):  # fmt: skip
    """y [OUTPUTS, COLUMNS] = (code − zero) · scale, rounded once: a program for some outputs of one block."""
    n = tl.program_id(0) * OUTPUT_TILE + tl.arange(0, OUTPUT_TILE)[:, None]
    block = tl.program_id(1)
    j = tl.arange(0, WIDTH)[None, :]
    there = n < OUTPUTS
    at = panel_bytes(weight, n, j, BLOCKS, PLACES, WIDTH) + block * (PLACES * 16 * WIDTH)
    packed = tl.load(at, mask=there, other=0)
    second, third = packed, packed
    if PLACES == 3:
        second = tl.load(at + 16 * WIDTH, mask=there, other=0)
        third = tl.load(at + 32 * WIDTH, mask=there, other=0)
    for strand in tl.static_range(STRANDS):
        k = (block * STRANDS + strand) * WIDTH + j
        inside = there & (k < COLUMNS)
        number = values(packed, second, third, BITS, EXPONENT_BITS, strand).to(tl.float32)
        if DOWN:
            parameter = n // GROUP * COLUMNS + k
        else:
            parameter = k // GROUP * PADDED_OUTPUTS + n
        if zero is None:
            number -= CENTRE
        else:
            number -= tl.load(zero + parameter, mask=inside, other=0).to(tl.float32)
        number *= tl.load(scale + parameter, mask=inside, other=0.0).to(tl.float32)
        tl.store(y + n.to(tl.int64) * COLUMNS + k, number.to(y.dtype.element_ty), mask=inside)
