"""Inputs to codes in one pass, a program for each token: the codes of `numerics.inputs`, bit for bit.

Launched without fused multiplication and addition, which would round once where the definition rounds twice.
"""

import triton
import triton.language as tl

HALF_WAY = tl.constexpr(1.5 * 2.0**23)
"""Adding and taking off so much rounds a float32 of up to 2^22 to a whole number, ties to even."""

EXPONENT_MASK = tl.constexpr(0x7F800000)

SMALLEST_STEP = tl.constexpr(2.0**-126)


@triton.jit
def whole(scaled, LOWEST: tl.constexpr, HIGHEST: tl.constexpr, EXPONENT_BITS: tl.constexpr, STEPS: tl.constexpr):
    """Rounds to the grid, saturating: a whole number, or a floating-point grid's value at bias 0 (`numerics.floats`).

    EXPONENT_BITS: 0 of an integer grid. STEPS: 1.5 · 2^(23 − mantissa bits).
    """
    inside = tl.minimum(tl.maximum(scaled, LOWEST), HIGHEST)
    if EXPONENT_BITS == 0:
        return (inside + HALF_WAY) - HALF_WAY
    if EXPONENT_BITS == 1:
        return (inside + 2.0 * STEPS) - 2.0 * STEPS
    power = (inside.to(tl.int32, bitcast=True) & EXPONENT_MASK).to(tl.float32, bitcast=True)
    steps = tl.maximum(power, 2.0) * STEPS
    return (inside + steps) - steps


@triton.jit
def static_codes(
    x,
    multiplier,
    offset,
    gain,
    codes,
    code_sums,
    x_stride,
    COLUMNS: tl.constexpr,
    PADDED: tl.constexpr,
    LOWEST: tl.constexpr,
    HIGHEST: tl.constexpr,
    EXPONENT_BITS: tl.constexpr,
    STEPS: tl.constexpr,
    CENTRE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """codes[token, j] = gain_j · round(x · multiplier_j + offset_j) − CENTRE as int8, and their sums."""
    token = tl.program_id(0)
    total = tl.zeros([BLOCK], tl.int32)
    for start in range(0, PADDED, BLOCK):
        j = start + tl.arange(0, BLOCK)
        inside = j < COLUMNS
        scaled = tl.load(x + token.to(tl.int64) * x_stride + j, mask=inside, other=0.0).to(tl.float32)
        scaled = scaled * tl.load(multiplier + j, mask=inside, other=0.0)
        if offset is not None:
            scaled = scaled + tl.load(offset + j, mask=inside, other=0.0)
        value = whole(scaled, LOWEST, HIGHEST, EXPONENT_BITS, STEPS)
        if gain is not None:
            value = value * tl.load(gain + j, mask=inside, other=0.0)
        found = tl.where(inside, value.to(tl.int32) - CENTRE, 0)
        total += found
        tl.store(codes + token.to(tl.int64) * PADDED + j, found.to(tl.int8), mask=j < PADDED)
    if code_sums is not None:
        tl.store(code_sums + token, tl.sum(total, 0))


@triton.jit
def transformed(value, shift, scale, j, inside):
    """(value − shift_j) / scale_j, float32, rounded as IEEE says."""
    if shift is not None:
        value = value - tl.load(shift + j, mask=inside, other=0.0)
    if scale is not None:
        divisor = tl.load(scale + j, mask=inside, other=1.0)
        value, divisor = tl.broadcast(value, divisor)
        value = tl.div_rn(value, divisor)
    return value


@triton.jit
def token_codes(
    x,
    shift,
    scale,
    codes,
    code_sums,
    step,
    zero_points,
    x_stride,
    COLUMNS: tl.constexpr,
    PADDED: tl.constexpr,
    SPAN: tl.constexpr,
    UNIT: tl.constexpr,
    LOWEST: tl.constexpr,
    HIGHEST: tl.constexpr,
    EXPONENT_BITS: tl.constexpr,
    STEPS: tl.constexpr,
    CENTRE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Codes with a step of the token's own, that step, and with `zero_points` its zero point (less CENTRE).

    SPAN: what the largest magnitude, or with zero points the range, is divided by. UNIT: the grid's smallest value;
    codes count it.
    """
    token = tl.program_id(0)
    row = x + token.to(tl.int64) * x_stride
    low = tl.zeros([BLOCK], tl.float32)
    high = tl.zeros([BLOCK], tl.float32)
    for start in range(0, COLUMNS, BLOCK):
        j = start + tl.arange(0, BLOCK)
        inside = j < COLUMNS
        value = tl.load(row + j, mask=inside, other=0.0).to(tl.float32)
        value = tl.where(inside, transformed(value, shift, scale, j, inside), 0.0)
        low = tl.minimum(low, value)
        high = tl.maximum(high, value)
    lowest, highest = tl.min(low, 0), tl.max(high, 0)
    if zero_points is None:
        own = tl.maximum(tl.div_rn(tl.maximum(-lowest, highest), SPAN), SMALLEST_STEP)
        zero = 0.0
    else:
        own = tl.maximum(tl.div_rn(highest - lowest, SPAN), SMALLEST_STEP)
        zero = (tl.div_rn(-lowest, own) + HALF_WAY) - HALF_WAY
        tl.store(zero_points + token, zero.to(tl.int32) - CENTRE)
    tl.store(step + token, own * UNIT)
    total = tl.zeros([BLOCK], tl.int32)
    for start in range(0, PADDED, BLOCK):
        j = start + tl.arange(0, BLOCK)
        inside = j < COLUMNS
        value = tl.load(row + j, mask=inside, other=0.0).to(tl.float32)
        scaled = tl.div_rn(transformed(value, shift, scale, j, inside), tl.broadcast_to(own, [BLOCK]))
        if zero_points is None:
            value = whole(scaled, LOWEST, HIGHEST, EXPONENT_BITS, STEPS)
            if EXPONENT_BITS > 0:
                value = value * (1.0 / UNIT)
        else:
            # The definition adds the zero point to what is rounded already, and only then saturates.
            value = ((scaled + HALF_WAY) - HALF_WAY) + zero
            value = tl.minimum(tl.maximum(value, LOWEST), HIGHEST)
        found = tl.where(inside, value.to(tl.int32) - CENTRE, 0)
        total += found
        tl.store(codes + token.to(tl.int64) * PADDED + j, found.to(tl.int8), mask=j < PADDED)
    if code_sums is not None:
        tl.store(code_sums + token, tl.sum(total, 0))
