"""Products of int8 input codes with weights of 8 to 2 bits on the GPU: exact in int32, weights packed."""

from dataclasses import dataclass

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

from channelwise.runtime.gpu.device import on_device
from channelwise.runtime.gpu.kernels import integer as kernels
from channelwise.runtime.gpu.layout import PLACES, STRANDS, WIDTHS, Strands, pack_strands
from channelwise.runtime.gpu.tiles import MULTIPROCESSORS, TOGETHER, Tiles, tiles_of_bytes, tiles_of_strands

WHOLE_BYTE = 8

PADDED_TO = 128
"""Columns of bytes are filled up to a multiple: descriptors want addresses that are multiples of 16."""


@dataclass(frozen=True)
class IntegerWeight:
    """A weight [outputs, columns] for integer products.

    data: with 8 bits values, int8 [outputs, padded columns]; else codes, `Strands.data`. exponent_bits: those of the
    floating-point grid that codes of 4 bits are looked up on, 0 of integers, whose codes are the values. sums: int32
    [outputs], Σ_k value_ok.
    """

    data: torch.Tensor
    sums: torch.Tensor
    bits: int
    exponent_bits: int
    outputs: int
    columns: int

    @property
    def padded_columns(self) -> int:
        """Columns of the input codes that the product takes."""
        if self.bits == WHOLE_BYTE:
            return self.data.shape[1]
        return self.data.shape[1] * STRANDS[self.bits] * self.data.shape[-1]

    def codes(self) -> torch.Tensor:
        """The codes, with 8 bits the values, int16 [outputs, columns]."""
        if self.bits == WHOLE_BYTE:
            return self.data[:, : self.columns].to(torch.int16)
        return Strands(self.data, self.bits, self.outputs, self.columns).codes()


def pack_integer(codes: torch.Tensor, values: torch.Tensor, bits: int, exponent_bits: int = 0) -> IntegerWeight:
    """codes: integers [outputs, columns], 0 … 2^bits − 1; values: what they stand for, −128 … 127, kept with 8 bits.

    bits: 8, 6, 4, 3 or 2. Raises ValueError for another width.
    """
    outputs, columns = codes.shape
    sums = values.sum(dim=1, dtype=torch.int32)
    if bits == WHOLE_BYTE:
        data = torch.nn.functional.pad(values.to(torch.int8), (0, -columns % PADDED_TO)).contiguous()
    else:
        data = pack_strands(codes, bits, WIDTHS[bits]).data
    return IntegerWeight(data, sums, bits, exponent_bits, outputs, columns)


def integer_product(
    codes: torch.Tensor,
    weight: IntegerWeight,
    zero_point: int | torch.Tensor,
    factor: torch.Tensor | None,
    *,
    step: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    offset: torch.Tensor | None = None,
    code_sums: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    tiles: Tiles | None = None,
) -> torch.Tensor:
    """y_mo = exact_mo · factor_o · step_m + bias_o, exact_mo = Σ_k (x_mk − zero_point_m) · (value_ok − offset_o).

    The sums are integers modulo 2^32 (exact up to 2^16 columns), rounded to float32 once. codes: int8 [tokens, padded
    columns], zeros in the padding. zero_point: one for all, or int32 [tokens]. factor, bias: float32 [outputs]; without
    a factor the sums themselves come back, int32. step: float32 [tokens]; offset: int32 [outputs], which needs
    code_sums, int32 [tokens]. dtype: of the result [tokens, outputs]. tiles: None for the usual ones.
    """
    tokens = codes.shape[0]
    y = torch.empty(tokens, weight.outputs, dtype=torch.int32 if factor is None else dtype, device=codes.device)
    if tokens == 0 or weight.outputs == 0:
        return y
    zero_points, zero = (zero_point, 0) if isinstance(zero_point, torch.Tensor) else (None, zero_point)
    shared = (y, factor, step, bias, offset, code_sums, weight.sums, zero_points, zero, tokens)
    zeroed = zero_points is not None or zero != 0
    launch = _multiply_bytes if weight.bits == WHOLE_BYTE else _multiply_strands
    with on_device(codes.device):
        launch(codes, weight, shared, zeroed, tiles)
    return y


def _multiply_bytes(
    codes: torch.Tensor, weight: IntegerWeight, shared: tuple[object, ...], zeroed: bool, tiles: Tiles | None
) -> None:
    tokens, padded = codes.shape
    tiles = tiles or tiles_of_bytes(tokens, weight.outputs)
    depth = min(tiles.depth, PADDED_TO) if padded % tiles.depth else tiles.depth
    token_tiles = triton.cdiv(tokens, tiles.tokens)
    programs = token_tiles * triton.cdiv(weight.outputs, tiles.outputs)
    kernels.product_of_bytes[(min(programs, MULTIPROCESSORS) if tiles.staying else programs,)](
        TensorDescriptor.from_tensor(codes, [tiles.tokens, depth]),
        TensorDescriptor.from_tensor(weight.data, [tiles.outputs, depth]),
        *shared, token_tiles, ZEROED=zeroed, OUTPUTS=weight.outputs, COLUMNS=weight.columns, PADDED=padded,
        TOKENS=tiles.tokens, OUTPUT_TILE=tiles.outputs, DEPTH=depth, TOGETHER=TOGETHER, STAYING=tiles.staying,
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip


def _multiply_strands(
    codes: torch.Tensor, weight: IntegerWeight, shared: tuple[object, ...], zeroed: bool, tiles: Tiles | None
) -> None:
    tokens = codes.shape[0]
    strands = Strands(weight.data, weight.bits, weight.outputs, weight.columns)
    tiles = tiles or tiles_of_strands(tokens, strands.shape)
    token_tiles = triton.cdiv(tokens, tiles.tokens)
    kernels.product_of_strands[(token_tiles * triton.cdiv(weight.outputs, tiles.outputs),)](
        codes, weight.data, *shared, token_tiles, ZEROED=zeroed, OUTPUTS=weight.outputs, COLUMNS=weight.columns,
        PADDED_OUTPUTS=strands.padded_outputs, BLOCKS=weight.data.shape[1], BITS=weight.bits,
        EXPONENT_BITS=weight.exponent_bits, STRANDS=STRANDS[weight.bits], PLACES=PLACES[weight.bits],
        WIDTH=strands.width, FULL=tokens % tiles.tokens == 0, TOKENS=tiles.tokens, OUTPUT_TILE=tiles.outputs,
        SPLITS=tiles.splits, TOGETHER=TOGETHER, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
