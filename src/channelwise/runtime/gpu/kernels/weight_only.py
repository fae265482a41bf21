"""Products of floating-point inputs with packed weights, and packed weights made a matrix.

Inputs are made whole numbers first: over some columns (a span) they share a step, a power of two, and two or three
signed digits of base 256 hold them. Their products with codes are then exact sums of the tensor cores; steps, scales
and zero points come after them, once for each span.
"""

import triton
import triton.language as tl

from channelwise.runtime.gpu.kernels.bits import panel_bytes, values
from channelwise.runtime.gpu.kernels.quantize import EXPONENT_MASK, HALF_WAY, SMALLEST_STEP, transformed


@triton.jit
def whole_numbers(
    x, shift, channel_scale, scale, zero, digits, step, weighed, tokens, x_stride, COLUMNS: tl.constexpr,
    SPANS: tl.constexpr, SPAN: tl.constexpr, DIGITS: tl.constexpr, REACH: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    """Inputs as digits, a program for one span of one token: (x − shift) / channel_scale, times a column's scale.

    scale, zero: [groups, COLUMNS] of the groups down columns, for each of which there are numbers of its own; None
    without. digits: int8 [groups, DIGITS, tokens, SPANS · SPAN], the highest first; step, weighed: float32 [groups,
    tokens, SPANS], the value of 1 and Σ numbers · zero (without zero points Σ numbers).
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
    tl.store(weighed + at, tl.sum(total.to(tl.float32), 0))
    for digit in tl.static_range(DIGITS):
        # From the lowest up, which lies last.
        row = (group * DIGITS + DIGITS - 1 - digit).to(tl.int64) * tokens + token
        tl.store(digits + row * (SPANS * SPAN) + j, ((number + 128) % 256 - 128).to(tl.int8))
        number = (number + 128) >> 8


@triton.jit
def product_of_digits(
    digits, step, weighed, weight, y, scale, zero, bias, tokens,
    OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr, BLOCKS: tl.constexpr, BITS: tl.constexpr,
    EXPONENT_BITS: tl.constexpr, CENTRE: tl.constexpr, GROUP: tl.constexpr, DOWN: tl.constexpr,
    STRANDS: tl.constexpr, PLACES: tl.constexpr, WIDTH: tl.constexpr, TOGETHER: tl.constexpr, DIGITS: tl.constexpr,
    TOKENS: tl.constexpr, OUTPUT_TILE: tl.constexpr,
):  # fmt: skip
    """A tile [outputs, tokens] of x · Ŵᵀ + bias, Ŵ = (code − zero) · scale, with x from `whole_numbers`.

    CENTRE: what is taken off codes without zero points. DOWN: GROUP outputs share the scales and zero points of
    columns, which are in the numbers already; otherwise GROUP columns share those of an output, [groups, OUTPUTS].
    TOGETHER: strands of a span.
    """
    n = tl.program_id(0) * OUTPUT_TILE + tl.arange(0, OUTPUT_TILE)[:, None]
    m = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)[None, :]
    j = tl.arange(0, WIDTH)
    SPANS: tl.constexpr = BLOCKS * STRANDS // TOGETHER
    PADDED: tl.constexpr = BLOCKS * STRANDS * WIDTH
    there, asked = n < OUTPUTS, m < tokens
    bytes_ = panel_bytes(weight, n, j[None, :], BLOCKS, PLACES, WIDTH)
    own = 0
    if DOWN:
        own = tl.program_id(0) * OUTPUT_TILE // GROUP
    inputs = digits + (own * DIGITS * tokens + m).to(tl.int64) * PADDED + j[:, None]
    next_digit = tokens.to(tl.int64) * PADDED
    parameters = (own * tokens + m) * SPANS
    result = tl.zeros([OUTPUT_TILE, TOKENS], tl.float32)
    for block in range(BLOCKS):
        at = bytes_ + block * (PLACES * 16 * WIDTH)
        packed = tl.load(at, mask=there, other=0)
        second, third = packed, packed
        if PLACES == 3:
            second = tl.load(at + 16 * WIDTH, mask=there, other=0)
            third = tl.load(at + 32 * WIDTH, mask=there, other=0)
        for part in tl.static_range(STRANDS // TOGETHER):
            first = block * STRANDS + part * TOGETHER
            numbers = tl.zeros([OUTPUT_TILE, TOKENS], tl.float32)
            sums = tl.zeros([OUTPUT_TILE, TOKENS], tl.int32)
            for digit in tl.static_range(DIGITS):
                for strand in tl.static_range(TOGETHER):
                    right = tl.load(inputs + digit * next_digit + (first + strand) * WIDTH, mask=asked, other=0)
                    left = values(packed, second, third, BITS, EXPONENT_BITS, part * TOGETHER + strand)
                    sums = tl.dot(left, right, sums, out_dtype=tl.int32)
                if DIGITS == 2 and digit == 0:
                    # Sums of numbers of two digits over a span are int32, too.
                    sums *= 256
                elif DIGITS > 2:
                    numbers = numbers * 256.0 + sums.to(tl.float32)
                    sums = tl.zeros([OUTPUT_TILE, TOKENS], tl.int32)
            if DIGITS <= 2:
                numbers = sums.to(tl.float32)
            span = first // TOGETHER
            group = first * WIDTH // GROUP
            # The last block may be filled up beyond the last group.
            scaled = there & (group * GROUP < COLUMNS)
            if DOWN:
                if zero is not None:
                    numbers -= tl.load(weighed + parameters + span, mask=asked, other=0.0)
                elif CENTRE != 0:
                    numbers -= CENTRE * tl.load(weighed + parameters + span, mask=asked, other=0.0)
            elif zero is not None:
                taken = tl.load(zero + group * OUTPUTS + n, mask=scaled, other=0).to(tl.float32)
                numbers -= taken * tl.load(weighed + parameters + span, mask=asked, other=0.0)
            elif CENTRE != 0:
                numbers -= CENTRE * tl.load(weighed + parameters + span, mask=asked, other=0.0)
            numbers *= tl.load(step + parameters + span, mask=asked, other=0.0)
            if not DOWN:
                numbers *= tl.load(scale + group * OUTPUTS + n, mask=scaled, other=0.0).to(tl.float32)
            result += numbers
    if bias is not None:
        result += tl.load(bias + n, mask=there, other=0.0)
    tl.store(y + m.to(tl.int64) * OUTPUTS + n, result.to(y.dtype.element_ty), mask=there & asked)


@triton.jit
def matrix(
    weight, y, scale, zero,
    OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr, BLOCKS: tl.constexpr, BITS: tl.constexpr,
    EXPONENT_BITS: tl.constexpr, CENTRE: tl.constexpr, GROUP: tl.constexpr, DOWN: tl.constexpr,
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
            parameter = k // GROUP * OUTPUTS + n
        if zero is None:
            number -= CENTRE
        else:
            number -= tl.load(zero + parameter, mask=inside, other=0).to(tl.float32)
        number *= tl.load(scale + parameter, mask=inside, other=0.0).to(tl.float32)
        tl.store(y + n.to(tl.int64) * COLUMNS + k, number.to(y.dtype.element_ty), mask=inside)
