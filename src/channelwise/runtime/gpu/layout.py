"""How packed weights lie on a GPU: in panels of 16 output channels, their codes in strands.

A block is so many consecutive columns, a strand so many consecutive columns of a block (`columns` of it, W). Byte j of
a row's block holds code j of each strand, so that cutting the same bits out of W bytes gives W neighbouring columns,
which meet W neighbouring inputs as they are. Where codes share three bytes, these are W bytes apart.

    bits  strands  bytes  codes in the bytes, lowest bit first
    4     2        1      0 1
    2     4        1      0 1 2 3
    6     4        3      0 | 1 | 2, and 3 in the upper two bits of each
    3     8        3      0 1 | 2 3 | 4 5, and 6 and 7 in the upper two bits of each (6: the first two and bit 6 of the
                          second byte, 7: its bit 7 and the last two)
    8     1        1      0: a value −128 … 127 instead of a code
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import or_

import torch

from channelwise.runtime.gpu.tiles import PackedShape

PANEL_OUTPUTS = 16

STRANDS = {8: 1, 6: 4, 4: 2, 3: 8, 2: 4}
"""How many codes share bytes."""

PLACES = {8: 1, 6: 3, 4: 1, 3: 3, 2: 1}
"""How many bytes they share."""

WIDTHS = {8: 128, 6: 32, 4: 64, 3: 32, 2: 32}
"""Columns of a strand for integer products, where blocks of more columns would only fill up more."""

NARROWEST = 32
"""Columns of a strand at least: what the tensor cores multiply at once in bytes."""

CONTAINERS = {8: 8, 7: 8, 6: 6, 5: 6, 4: 4, 3: 3, 2: 2}
"""The width that codes of a width are kept in."""


@dataclass(frozen=True)
class Strands:
    """A weight [outputs, columns] in strands: `data` is uint8 [panels, blocks, places, 16, width] (8 bits: int8).

    bits: 8, 6, 4, 3 or 2. width: columns of a strand. What fills up the last panel and the last block is 0.
    """

    data: torch.Tensor
    bits: int
    outputs: int
    columns: int

    @property
    def width(self) -> int:
        """Columns of a strand."""
        return self.data.shape[-1]

    @property
    def block(self) -> int:
        """Columns of a block."""
        return self.width * STRANDS[self.bits]

    @property
    def padded_outputs(self) -> int:
        """Outputs of all panels."""
        return self.data.shape[0] * PANEL_OUTPUTS

    @property
    def padded_columns(self) -> int:
        """Columns of all blocks."""
        return self.data.shape[1] * self.block

    @property
    def shape(self) -> PackedShape:
        """What tiles are chosen by."""
        return PackedShape(self.outputs, self.data.shape[1], self.block, self.data.shape[2] * self.width)

    def codes(self) -> torch.Tensor:
        """What `pack_strands` was given, int16 [outputs, columns]."""
        bytes_ = self.data.to(torch.int16)
        parts = _UNPACK[self.bits](bytes_.unbind(2))
        whole = torch.stack(parts, dim=2).permute(0, 3, 1, 2, 4)
        panels, _, blocks, strands, width = whole.shape
        return whole.reshape(panels * PANEL_OUTPUTS, blocks * strands * width)[: self.outputs, : self.columns]


def pack_strands(codes: torch.Tensor, bits: int, width: int) -> Strands:
    """codes: any integer dtype [outputs, columns], 0 … 2^bits − 1, with 8 bits −128 … 127; on any device.

    bits: 8, 6, 4, 3 or 2; width: columns of a strand. Raises ValueError for other widths, and for codes beyond.
    """
    if bits not in STRANDS:
        raise ValueError(f"{bits} bits: strands have 8, 6, 4, 3 or 2")
    low, high = (-128, 127) if bits == 8 else (0, 2**bits - 1)
    if codes.numel() and (int(codes.min()) < low or int(codes.max()) > high):
        raise ValueError(f"codes outside {low} … {high} do not lie in strands of {bits} bits")
    outputs, columns = codes.shape
    strands = STRANDS[bits]
    below, behind = -outputs % PANEL_OUTPUTS, -columns % (strands * width)
    whole = torch.nn.functional.pad(codes.to(torch.int8 if bits == 8 else torch.uint8), (0, behind, 0, below))
    panels = whole.reshape(-1, PANEL_OUTPUTS, whole.shape[1] // (strands * width), strands, width)
    parts = panels.permute(0, 2, 3, 1, 4).unbind(2)
    return Strands(torch.stack(_PACK[bits](parts), dim=2).contiguous(), bits, outputs, columns)


Parts = tuple[torch.Tensor, ...]


def _joined(*parts: torch.Tensor) -> torch.Tensor:
    return reduce(or_, parts)


def _pack_three(c: Parts) -> list[torch.Tensor]:
    return [
        _joined(c[0], c[1] << 3, (c[6] & 3) << 6),
        _joined(c[2], c[3] << 3, (c[6] >> 2) << 6, (c[7] & 1) << 7),
        _joined(c[4], c[5] << 3, (c[7] >> 1) << 6),
    ]


def _unpack_three(b: Parts) -> list[torch.Tensor]:
    whole = [(byte >> shift) & 7 for byte in b for shift in (0, 3)]
    sixth = _joined((b[0] >> 6) & 3, ((b[1] >> 6) & 1) << 2)
    return [*whole, sixth, _joined((b[1] >> 7) & 1, ((b[2] >> 6) & 3) << 1)]


def _pack_six(c: Parts) -> list[torch.Tensor]:
    return [_joined(c[place], ((c[3] >> (2 * place)) & 3) << 6) for place in range(3)]


def _unpack_six(b: Parts) -> list[torch.Tensor]:
    return [*(byte & 63 for byte in b), _joined(*(((b[place] >> 6) & 3) << (2 * place) for place in range(3)))]


_PACK: dict[int, Callable[[Parts], list[torch.Tensor]]] = {
    8: list,
    6: _pack_six,
    4: lambda c: [_joined(c[0], c[1] << 4)],
    3: _pack_three,
    2: lambda c: [_joined(*(part << (2 * strand) for strand, part in enumerate(c)))],
}

_UNPACK: dict[int, Callable[[Parts], list[torch.Tensor]]] = {
    8: list,
    6: _unpack_six,
    4: lambda b: [b[0] & 15, (b[0] >> 4) & 15],
    3: _unpack_three,
    2: lambda b: [(b[0] >> (2 * strand)) & 3 for strand in range(4)],
}
