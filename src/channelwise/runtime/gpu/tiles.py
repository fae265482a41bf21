"""Which part of a product one program computes, how many warps it has, and how far loads run ahead."""

from dataclasses import dataclass

MULTIPROCESSORS = 132
"""Of the GPUs that the choices below are made for (H100, H200): fewer programs leave some of them idle."""

TOGETHER = 8
"""Tiles of tokens that take turns with one tile of outputs."""

LARGEST_ROUNDING_BLOCK = 8192


@dataclass(frozen=True)
class Tiles:
    """outputs, tokens: of a program's tile; depth: columns that are loaded together (8-bit weights only)."""

    outputs: int
    tokens: int
    depth: int = 128
    warps: int = 4
    stages: int = 3


FEW_TOKENS = 64
"""Up to so many tokens a product reads memory more than it computes, and one tile holds them all."""


def candidates(kind: str) -> tuple[Tiles, ...]:
    """What is worth trying on a GPU for products of `bytes`, `strands` (both integer) and `digits` (weights only).

    Raises ValueError for another kind.
    """
    if kind == "bytes":
        few = [Tiles(outputs, tokens, 256, 4, 4) for outputs in (32, 64, 128) for tokens in (16, 32, 64)]
        shapes = ((128, 128), (256, 128), (128, 256), (256, 64))
        many = [Tiles(*shape, 128, warps, stages) for shape in shapes for warps in (4, 8) for stages in (3, 4)]
        return (*few, *many)
    if kind == "strands":
        few = [
            Tiles(outputs, tokens, 128, 4, stages) for outputs in (64, 128) for tokens in (16, 64) for stages in (3, 5)
        ]
        many = [
            Tiles(outputs, tokens, 128, 8, stages)
            for outputs in (128, 256)
            for tokens in (128, 256)
            for stages in (2, 3, 4)
        ]
        return (*few, *many)
    if kind == "digits":
        sizes = ((16, 1), (32, 2), (64, 4), (128, 8))
        return tuple(
            Tiles(outputs, tokens, 128, warps, stages)
            for outputs, warps in sizes
            for tokens in (8, 16, 32, 64)
            for stages in (3, 4, 6)
        )
    raise ValueError(f"no products of {kind!r}: there are bytes, strands and digits")


def tiles_of_bytes(tokens: int, outputs: int) -> Tiles:
    """For products with weights of 8 bits."""
    if tokens <= FEW_TOKENS:
        return Tiles(_narrow(outputs, 128), _power_of_two(tokens), 256, 4, 4)
    wide = -(-tokens // 128) * -(-outputs // 256)
    return Tiles(256, 128, 128, 8, 4) if wide >= 2 * MULTIPROCESSORS else Tiles(128, 128, 128, 8, 4)


def tiles_of_strands(tokens: int, outputs: int) -> Tiles:
    """For products of codes with packed weights."""
    if tokens <= FEW_TOKENS:
        return Tiles(64, _power_of_two(tokens), 128, 4, 4)
    wide = -(-tokens // 256) * -(-outputs // 128)
    return Tiles(128, 256, 128, 8, 3) if wide >= 2 * MULTIPROCESSORS else Tiles(128, 128, 128, 8, 3)


def tiles_of_digits(tokens: int, outputs: int, group_outputs: int | None) -> Tiles:
    """For weight-only products; group_outputs: how many outputs share scales down a column, None along rows."""
    size = _narrow(outputs, 64)
    if group_outputs is not None:
        # A program's inputs are multiplied by the scales of one group.
        size = min(size, group_outputs & -group_outputs)
    return Tiles(size, min(_power_of_two(tokens, 8), FEW_TOKENS), 128, max(1, size // 16), 4)


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
