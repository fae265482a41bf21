"""How a program's tile lies over a packed weight: where its bytes are, and how warps divide its columns.

With few tokens a multiprocessor has few tiles, and a tile few rows; so that many warps read memory at a time, they
divide the columns of the weight. A tile has its outputs and its tokens `SPLITS` times then: row (s, o) and column
(s, m) see the blocks s, s + SPLITS, s + 2 · SPLITS, … What rows meet in columns of another split is dropped at the end;
columns that nobody needs would be there in any case, as the tensor cores take eight at least. One program sums up all,
in an order of its own: the same sums every time.
"""

import triton
import triton.language as tl


@triton.jit
def joined(sums, SPLITS: tl.constexpr, OUTPUT_TILE: tl.constexpr, TOKENS: tl.constexpr):
    """[SPLITS · OUTPUT_TILE, SPLITS · TOKENS] → [OUTPUT_TILE, TOKENS]: the sum over what met in the same split."""
    if SPLITS == 1:
        return sums
    row_split = tl.arange(0, SPLITS * OUTPUT_TILE)[:, None] // OUTPUT_TILE
    column_split = tl.arange(0, SPLITS * TOKENS)[None, :] // TOKENS
    same = tl.where(row_split == column_split, sums, 0)
    return tl.sum(tl.sum(tl.reshape(same, [SPLITS, OUTPUT_TILE, SPLITS, TOKENS]), 2), 0)


@triton.jit
def loaded(places, there, ALL: tl.constexpr):
    """What lies there, else 0. ALL: nothing is missing, which costs less to load."""
    if ALL:
        return tl.load(places)
    return tl.load(places, mask=there, other=0)


@triton.jit
def panel_bytes(weight, n, j, BLOCKS: tl.constexpr, PLACES: tl.constexpr, WIDTH: tl.constexpr):
    """Where the first bytes of rows n lie (`layout.Strands`); n and j in shapes that give the tile's together."""
    return weight + (n // 16).to(tl.int64) * (BLOCKS * PLACES * 16 * WIDTH) + n % 16 * WIDTH + j
