"""Products of int8 codes with weights of 8 to 2 bits, exact in int32, finished in one go.

y_mo = exact_mo · factor_o · step_m + bias_o, exact_mo = Σ_k (x_mk − zero_m) · (w_ok − offset_o): what does not depend
on both is taken off after the product, in whole numbers.
"""

import triton
import triton.language as tl

from channelwise.runtime.gpu.kernels.bits import panel_bytes, values


@triton.jit
def place(number, token_tiles, OUTPUT_TILES: tl.constexpr, TOGETHER: tl.constexpr):
    """Which tile of tokens and which of outputs a program has: `TOGETHER` of tokens for each one of outputs in turn.

    Programs that run at the same time then read few different tiles, which stay in the second-level cache.
    """
    size = TOGETHER * OUTPUT_TILES
    first = number // size * TOGETHER
    height = tl.minimum(token_tiles - first, TOGETHER)
    within = number % size
    return first + within % height, within // height


@triton.jit
def finish(
    sums, m, n, y, factor, step, bias, offset, code_sums, weight_sums, zero_points, zero_point, tokens,
    ZEROED: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Stores what a tile's sums become; m and n are the tokens and outputs, in shapes that give the tile's together.

    ZEROED: whether inputs have zero points, `zero_points` their own or all of them `zero_point`, which is no constant:
    layers that differ in it alone are one kernel.
    """
    inside = (m < tokens) & (n < OUTPUTS)
    if offset is not None:
        moved = tl.load(offset + n, mask=n < OUTPUTS, other=0)
        sums -= moved * tl.load(code_sums + m, mask=m < tokens, other=0)
    if ZEROED:
        over_columns = tl.load(weight_sums + n, mask=n < OUTPUTS, other=0)
        if offset is not None:
            over_columns -= COLUMNS * tl.load(offset + n, mask=n < OUTPUTS, other=0)
        if zero_points is not None:
            sums -= tl.load(zero_points + m, mask=m < tokens, other=0) * over_columns
        else:
            sums -= zero_point * over_columns
    at = y + m.to(tl.int64) * OUTPUTS + n
    if factor is None:
        tl.store(at, sums, mask=inside)
    else:
        value = sums.to(tl.float32) * tl.load(factor + n, mask=n < OUTPUTS, other=0.0)
        if step is not None:
            value = value * tl.load(step + m, mask=m < tokens, other=0.0)
        if bias is not None:
            value = value + tl.load(bias + n, mask=n < OUTPUTS, other=0.0)
        tl.store(at, value.to(y.dtype.element_ty), mask=inside)


@triton.jit
def product_of_bytes(
    x, weight, y, factor, step, bias, offset, code_sums, weight_sums, zero_points, zero_point, tokens, token_tiles,
    ZEROED: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr, PADDED: tl.constexpr, TOKENS: tl.constexpr,
    OUTPUT_TILE: tl.constexpr, DEPTH: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    """Weights of 8 bits. x, weight: descriptors of int8 [tokens, PADDED] and [outputs, PADDED]."""
    token_tile, output_tile = place(tl.program_id(0), token_tiles, (OUTPUTS + OUTPUT_TILE - 1) // OUTPUT_TILE, TOGETHER)
    first_token, first_output = token_tile * TOKENS, output_tile * OUTPUT_TILE
    sums = tl.zeros([TOKENS, OUTPUT_TILE], tl.int32)
    for column in range(0, PADDED, DEPTH):
        left = x.load([first_token, column])
        right = weight.load([first_output, column])
        sums = tl.dot(left, right.T, sums, out_dtype=tl.int32)
    m = first_token + tl.arange(0, TOKENS)[:, None]
    n = first_output + tl.arange(0, OUTPUT_TILE)[None, :]
    finish(
        sums, m, n, y, factor, step, bias, offset, code_sums, weight_sums, zero_points, zero_point, tokens, ZEROED,
        OUTPUTS, COLUMNS,
    )  # fmt: skip


@triton.jit
def product_of_strands(
    x, weight, y, factor, step, bias, offset, code_sums, weight_sums, zero_points, zero_point, tokens, token_tiles,
    ZEROED: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr, BLOCKS: tl.constexpr, BITS: tl.constexpr,
    EXPONENT_BITS: tl.constexpr, STRANDS: tl.constexpr, PLACES: tl.constexpr, WIDTH: tl.constexpr,
    TOKENS: tl.constexpr, OUTPUT_TILE: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    """Packed weights (`layout.Strands`), made int8 in registers, from where the tensor cores take the left side.

    x: int8 [tokens, BLOCKS · STRANDS · WIDTH]. Tiles are [outputs, tokens].
    """
    token_tile, output_tile = place(tl.program_id(0), token_tiles, (OUTPUTS + OUTPUT_TILE - 1) // OUTPUT_TILE, TOGETHER)
    n = output_tile * OUTPUT_TILE + tl.arange(0, OUTPUT_TILE)[:, None]
    m = token_tile * TOKENS + tl.arange(0, TOKENS)[None, :]
    j = tl.arange(0, WIDTH)
    PADDED: tl.constexpr = BLOCKS * STRANDS * WIDTH
    bytes_ = panel_bytes(weight, n, j[None, :], BLOCKS, PLACES, WIDTH)
    inputs = x + m.to(tl.int64) * PADDED + j[:, None]
    sums = tl.zeros([OUTPUT_TILE, TOKENS], tl.int32)
    for block in range(BLOCKS):
        at = bytes_ + block * (PLACES * 16 * WIDTH)
        there = n < OUTPUTS
        packed = tl.load(at, mask=there, other=0)
        second, third = packed, packed
        if PLACES == 3:
            second = tl.load(at + 16 * WIDTH, mask=there, other=0)
            third = tl.load(at + 32 * WIDTH, mask=there, other=0)
        for strand in tl.static_range(STRANDS):
            right = tl.load(inputs + (block * STRANDS + strand) * WIDTH, mask=m < tokens, other=0)
            left_side = values(packed, second, third, BITS, EXPONENT_BITS, strand)
            sums = tl.dot(left_side, right, sums, out_dtype=tl.int32)
    finish(
        sums, m, n, y, factor, step, bias, offset, code_sums, weight_sums, zero_points, zero_point, tokens, ZEROED,
        OUTPUTS, COLUMNS,
    )  # fmt: skip
