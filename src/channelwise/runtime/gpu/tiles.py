"""Which part of a product one program computes, how many warps it has, and how far loads run ahead."""

from dataclasses import dataclass, replace

MULTIPROCESSORS = 132
"""Of the GPUs that the choices below are made for (H100, H200): fewer programs leave some of them idle."""

TOGETHER = 8
"""Tiles of tokens that take turns with one tile of outputs."""

LARGEST_ROUNDING_BLOCK = 8192

WARPS_ASKED, WARPS_NEEDED = 16 * MULTIPROCESSORS, 4 * MULTIPROCESSORS
"""Of products that read memory more than they compute: with few, a multiprocessor waits for what it has asked for."""

WARP_OUTPUTS = 16
"""Rows that the tensor cores take from one warp."""

MOST_SPLITS, FEW_COLUMNS = 8, 4
"""Of a weight's columns; so many only where each has few columns of the tile, else registers run out."""

SPLIT_COLUMNS, TURN_BYTES = 64, 16 * 1024
"""Columns of a tile that tokens and splits may fill, and bytes of inputs that a turn may ask for: both cost what they
take, and of eight splits one column in eight is of use."""

LEAST_COLUMNS, SMALLEST_TOKENS = 8, 8
"""What the tensor cores multiply at once; tiles of tokens that are not made smaller."""

SHARED_BYTES = 72 * 1024
"""Of the memory of a multiprocessor, 227 KiB, for what a program has asked for: some programs share it."""

LEAST_AHEAD, MOST_AHEAD, MOST_BYTES_AHEAD = 2, 3, 5
"""Turns that a program asks for at a time; with weights of 8 bits, whose turns are small, more."""

WARPS_TOGETHER, WARPS_OF_MANY = 4, 8
"""Of a program: at least, so that they share its inputs; and for many tokens, where programs stay."""


@dataclass(frozen=True)
class Tiles:
    """outputs, tokens: of a program's tile; depth: columns that are loaded together (8-bit weights only).

    splits: of a weight's columns, among the warps of a program (not with 8-bit weights). staying: one program for each
    multiprocessor computes tile after tile (8-bit weights only).
    """

    outputs: int
    tokens: int
    depth: int = 128
    warps: int = 4
    stages: int = 3
    splits: int = 1
    staying: bool = False


@dataclass(frozen=True)
class PackedShape:
    """Of a packed weight: outputs, blocks of a row, and the columns of a block and their bytes (`layout.Strands`)."""

    outputs: int
    blocks: int
    block_columns: int
    block_bytes: int


FEW_TOKENS = 64
"""Up to so many tokens a product reads memory more than it computes."""


def candidates(kind: str) -> tuple[Tiles, ...]:
    """What is worth trying on a GPU for products of `bytes`, `strands` (both integer) and `digits` (weights only).

    Raises ValueError for another kind.
    """
    if kind == "bytes":
        few = [
            Tiles(outputs, tokens, 256, 4, stages) for outputs in (32, 64) for tokens in (16, 64) for stages in (4, 6)
        ]
        shapes = ((128, 128, 4), (256, 64, 4), (128, 128, 8), (256, 64, 8), (256, 128, 8), (128, 256, 8))
        many = [Tiles(outputs, wide, 128, warps, stages) for outputs, wide, warps in shapes for stages in (3, 4)]
        return (*few, *many, *(replace(tiles, staying=True) for tiles in many if tiles.warps == WARPS_OF_MANY))
    if kind == "strands":
        many = [Tiles(*shape, 128, 8, stages) for shape in ((128, 128), (256, 128), (128, 256)) for stages in (2, 3, 4)]
        return (*_split_candidates(1), *many)
    if kind == "digits":
        return _split_candidates(2)
    raise ValueError(f"no products of {kind!r}: there are bytes, strands and digits")


def _split_candidates(places: int) -> tuple[Tiles, ...]:
    """For few tokens; places: columns of a tile for each token of it."""
    return tuple(
        Tiles(outputs, tokens, 128, splits * outputs // WARP_OUTPUTS, stages, splits)
        for outputs in (16, 32, 64)
        for splits in (1, 2, 4, 8)
        for tokens in (1, 4, 16, 64)
        for stages in (3, 4)
        if WARPS_TOGETHER <= splits * outputs // WARP_OUTPUTS <= 2 * WARPS_TOGETHER
        and LEAST_COLUMNS <= splits * tokens * places <= SPLIT_COLUMNS
    )


def tiles_of_bytes(tokens: int, outputs: int) -> Tiles:
    """For products with weights of 8 bits."""
    if tokens <= FEW_TOKENS:
        size, wide, depth = _narrow(outputs, 64), _power_of_two(tokens), 256
        return Tiles(size, wide, depth, 4, 1 + min(MOST_BYTES_AHEAD, SHARED_BYTES // (depth * (size + wide))))
    wide = -(-tokens // 128) * -(-outputs // 256)
    return Tiles(256, 128, 128, 8, 4) if wide >= 2 * MULTIPROCESSORS else Tiles(128, 128, 128, 8, 4)


def tiles_of_strands(tokens: int, shape: PackedShape) -> Tiles:
    """For products of codes with packed weights."""
    if tokens <= FEW_TOKENS:
        return _split(tokens, 1, shape)
    wide = -(-tokens // 256) * -(-shape.outputs // 128)
    return Tiles(128, 256, 128, 8, 3) if wide >= 2 * MULTIPROCESSORS else Tiles(128, 128, 128, 8, 3)


def tiles_of_digits(tokens: int, shape: PackedShape, places: int, group_outputs: int | None) -> Tiles:
    """For weight-only products; places: of digits for an input.

    group_outputs: how many outputs share scales down a column, None along rows.
    """
    # A program's inputs are multiplied by the scales of one group.
    most = None if group_outputs is None else group_outputs & -group_outputs
    return _split(tokens, places, shape, most)


def _split(tokens: int, places: int, shape: PackedShape, most_outputs: int | None = None) -> Tiles:
    """As many splits as give every multiprocessor its warps, while there are blocks and columns of tiles for them.

    Where that is not enough, smaller tiles of tokens: others read the weight again, from the second-level cache.
    """
    most_tokens = min(SPLIT_COLUMNS, TURN_BYTES // shape.block_columns) // places
    wide, rows = min(_power_of_two(tokens, 1), most_tokens), -(-shape.outputs // WARP_OUTPUTS)

    def most_splits() -> int:
        # Two turns at least: what one turn asks for arrives while nothing else is to be done.
        most = MOST_SPLITS if wide * places <= FEW_COLUMNS else MOST_SPLITS // 2
        return min(most, most_tokens // wide, _power_of_two(shape.blocks, 1) // 2)

    while wide > SMALLEST_TOKENS and rows * most_splits() * -(-tokens // wide) < WARPS_NEEDED:
        wide //= 2
    splits = max(1, LEAST_COLUMNS // (wide * places))
    while splits < most_splits() and rows * splits * -(-tokens // wide) < WARPS_ASKED:
        splits *= 2
    size = max(WARP_OUTPUTS, WARPS_TOGETHER * WARP_OUTPUTS // splits)
    size = size if most_outputs is None else min(size, most_outputs)
    turn = splits * (size * shape.block_bytes + wide * places * shape.block_columns)
    ahead = min(MOST_AHEAD, max(LEAST_AHEAD, SHARED_BYTES // turn))
    return Tiles(size, wide, 128, max(1, splits * size // WARP_OUTPUTS), 1 + ahead, splits)


def rounding_block(padded: int) -> tuple[int, int]:
    """Columns that a program quantizes at a time, and its warps."""
    block = min(_power_of_two(padded), LARGEST_ROUNDING_BLOCK)
    return block, max(1, min(8, block // 512))


def _narrow(outputs: int, largest: int) -> int:
    """The widest tile of outputs, 16 to `largest`, that still gives every multiprocessor a program."""
    size = largest
    while size > 16 and -(-outputs // size) < MULTIPROCESSORS:
        size //= 2
    return size


def _power_of_two(number: int, smallest: int = 16) -> int:
    """The smallest power of two from `number` up."""
    return max(smallest, 1 << (number - 1).bit_length())
