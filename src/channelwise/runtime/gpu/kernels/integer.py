"""Products of int8 codes with weights of 8 to 2 bits, exact in int32, finished in one go.

y_mo = exact_mo · factor_o · step_m + bias_o, exact_mo = Σ_k (x_mk − zero_m) · (w_ok − offset_o): what does not depend
on both is taken off after the product, in whole numbers.
"""

import triton
import triton.language as tl

from channelwise.runtime.gpu.kernels.bits import INTERPRETED, values
from channelwise.runtime.gpu.kernels.tiling import joined, loaded, panel_bytes


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
def tile_of_bytes(
    number, x, weight, y, factor, step, bias, offset, code_sums, weight_sums, zero_points, zero_point, tokens,
    token_tiles, ZEROED: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr, PADDED: tl.constexpr,
    TOKENS: tl.constexpr, OUTPUT_TILE: tl.constexpr, DEPTH: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    """One tile of `product_of_bytes`."""
    token_tile, output_tile = place(number, token_tiles, (OUTPUTS + OUTPUT_TILE - 1) // OUTPUT_TILE, TOGETHER)
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
def product_of_bytes(
    x, weight, y, factor, step, bias, offset, code_sums, weight_sums, zero_points, zero_point, tokens, token_tiles,
    ZEROED: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr, PADDED: tl.constexpr, TOKENS: tl.constexpr,
    OUTPUT_TILE: tl.constexpr, DEPTH: tl.constexpr, TOGETHER: tl.constexpr, STAYING: tl.constexpr,
):  # fmt: skip
    """Weights of 8 bits. x, weight: descriptors of int8 [tokens, PADDED] and [outputs, PADDED].

    STAYING: a program computes tile after tile, and asks for the next one's numbers while it finishes one.
    """
    tiles = token_tiles * ((OUTPUTS + OUTPUT_TILE - 1) // OUTPUT_TILE)
    if not STAYING:
        tile_of_bytes(
            tl.program_id(0), x, weight, y, factor, step, bias, offset, code_sums, weight_sums, zero_points, zero_point,
            tokens, token_tiles, ZEROED, OUTPUTS, COLUMNS, PADDED, TOKENS, OUTPUT_TILE, DEPTH, TOGETHER,
        )  # fmt: skip
    elif INTERPRETED:
        # The interpreter has no ranges up to a number that is not known before, with the latest NumPy.
        number = tl.program_id(0)
        while number < tiles:
            tile_of_bytes(
                number, x, weight, y, factor, step, bias, offset, code_sums, weight_sums, zero_points, zero_point,
                tokens, token_tiles, ZEROED, OUTPUTS, COLUMNS, PADDED, TOKENS, OUTPUT_TILE, DEPTH, TOGETHER,
            )  # fmt: skip
            number += tl.num_programs(0)
    else:
        for number in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
            tile_of_bytes(
                number, x, weight, y, factor, step, bias, offset, code_sums, weight_sums, zero_points, zero_point,
                tokens, token_tiles, ZEROED, OUTPUTS, COLUMNS, PADDED, TOKENS, OUTPUT_TILE, DEPTH, TOGETHER,
            )  # fmt: skip


@triton.jit
def product_of_strands(
    x, weight, y, factor, step, bias, offset, code_sums, weight_sums, zero_points, zero_point, tokens, token_tiles,
    ZEROED: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr, PADDED_OUTPUTS: tl.constexpr,
    BLOCKS: tl.constexpr, BITS: tl.constexpr, EXPONENT_BITS: tl.constexpr, STRANDS: tl.constexpr, PLACES: tl.constexpr,
    WIDTH: tl.constexpr, FULL: tl.constexpr, TOKENS: tl.constexpr, OUTPUT_TILE: tl.constexpr, SPLITS: tl.constexpr,
    TOGETHER: tl.constexpr,
):  # fmt: skip
    """Packed weights (`layout.Strands`), made int8 in registers, from where the tensor cores take the left side.

    x: int8 [tokens, BLOCKS · STRANDS · WIDTH]. Tiles are [outputs, tokens]. FULL: whether tiles of tokens are.
    SPLITS: see `tiling`.
    """
    PADDED: tl.constexpr = BLOCKS * STRANDS * WIDTH
    ROWS: tl.constexpr = SPLITS * OUTPUT_TILE
    EVEN: tl.constexpr = BLOCKS % SPLITS == 0
    ROWS_ARE_THERE: tl.constexpr = EVEN and PADDED_OUTPUTS % OUTPUT_TILE == 0
    token_tile, output_tile = place(tl.program_id(0), token_tiles, (OUTPUTS + OUTPUT_TILE - 1) // OUTPUT_TILE, TOGETHER)
    row = tl.arange(0, ROWS)[:, None]
    n, row_block = output_tile * OUTPUT_TILE + row % OUTPUT_TILE, row // OUTPUT_TILE
    column = tl.arange(0, SPLITS * TOKENS)[None, :]
    m, column_block = token_tile * TOKENS + column % TOKENS, column // TOKENS
    j = tl.arange(0, WIDTH)
    bytes_ = panel_bytes(weight, n, j[None, :], BLOCKS, PLACES, WIDTH) + row_block * (PLACES * 16 * WIDTH)
    inputs = x + m.to(tl.int64) * PADDED + column_block * (STRANDS * WIDTH) + j[:, None]
    sums = tl.zeros([ROWS, SPLITS * TOKENS], tl.int32)
    for turn in range((BLOCKS + SPLITS - 1) // SPLITS):
        first = turn * SPLITS
        row_there = (n < PADDED_OUTPUTS) & (first + row_block < BLOCKS)
        column_there = (m < tokens) & (first + column_block < BLOCKS)
        at = bytes_ + first * (PLACES * 16 * WIDTH)
        packed = loaded(at, row_there, ROWS_ARE_THERE)
        second, third = packed, packed
        if PLACES == 3:
            second = loaded(at + 16 * WIDTH, row_there, ROWS_ARE_THERE)
            third = loaded(at + 32 * WIDTH, row_there, ROWS_ARE_THERE)
        for strand in tl.static_range(STRANDS):
            right = loaded(inputs + (first * STRANDS + strand) * WIDTH, column_there, EVEN and FULL)
            left_side = values(packed, second, third, BITS, EXPONENT_BITS, strand)
            sums = tl.dot(left_side, right, sums, out_dtype=tl.int32)
    n = output_tile * OUTPUT_TILE + tl.arange(0, OUTPUT_TILE)[:, None]
    m = token_tile * TOKENS + tl.arange(0, TOKENS)[None, :]
    finish(
        joined(sums, SPLITS, OUTPUT_TILE, TOKENS), m, n, y, factor, step, bias, offset, code_sums, weight_sums,
        zero_points, zero_point, tokens, ZEROED, OUTPUTS, COLUMNS,
    )  # fmt: skip
