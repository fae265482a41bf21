"""Codes of 2 to 8 bits as a dense little-endian bit stream per row: 8, 6 and 4 bits take 8, 6 and 4 bits on disk."""

import torch

CODES_PER_WORD = 8
"""Eight codes of n bits fill n whole bytes, and for n < 8 fit into a signed 64-bit word."""


def packed_columns(columns: int, bits: int) -> int:
    """Bytes of one packed row, ⌈columns · bits / 8⌉."""
    return -(-columns * bits // 8)


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack unsigned codes.

    codes: [rows, columns], any integer dtype, values in 0 … 2^bits − 1. Returns uint8 [rows, ⌈columns · bits / 8⌉];
    code j of a row lies in bits j·bits … (j+1)·bits − 1, lowest bit first; bits left over are 0.
    Raises ValueError if a code does not fit into `bits`.
    """
    if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= 2**bits):
        raise ValueError(f"codes outside 0 … {2**bits - 1} do not pack into {bits} bits")
    columns = codes.shape[1]
    if bits == 8:
        return codes.to(torch.uint8).contiguous()
    groups = _grouped(codes, CODES_PER_WORD)
    word = _joined(groups, bits)
    data = _split(word, bits, 8)
    return data.flatten(1)[:, : packed_columns(columns, bits)].contiguous()


def unpack(packed: torch.Tensor, bits: int, columns: int) -> torch.Tensor:
    """The inverse of `pack`: uint8 [rows, bytes] to uint8 codes [rows, columns]."""
    if bits == 8:
        return packed
    word = _joined(_grouped(packed, bits), 8)
    codes = _split(word, CODES_PER_WORD, bits)
    return codes.flatten(1)[:, :columns].contiguous()


def _grouped(x: torch.Tensor, size: int) -> torch.Tensor:
    """[rows, columns] to [rows, groups, size], filled up with zeros."""
    rows, columns = x.shape
    padded = torch.nn.functional.pad(x, (0, -columns % size))
    return padded.reshape(rows, padded.shape[1] // size, size)


def _joined(parts: torch.Tensor, width: int) -> torch.Tensor:
    """Words of parts of `width` bits each, lowest first: [..., parts] to int64 [...]."""
    word = torch.zeros(parts.shape[:-1], dtype=torch.int64, device=parts.device)
    for index in range(parts.shape[-1]):
        word |= parts[..., index].to(torch.int64) << (width * index)
    return word


def _split(word: torch.Tensor, parts: int, width: int) -> torch.Tensor:
    """The inverse of `_joined`: int64 [...] to uint8 [..., parts]."""
    mask = 2**width - 1
    split = [((word >> (width * index)) & mask).to(torch.uint8) for index in range(parts)]
    return torch.stack(split, dim=-1)
