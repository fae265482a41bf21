"""Quantization of inputs to signed bytes in one pass on the GPU: the codes of `numerics.inputs`, bit for bit.

Codes of a grid with a zero point are 0 … 255; they are stored less 128, and so is their zero point.
"""

from dataclasses import dataclass

import torch

from channelwise.numerics.floats import lattice_unit
from channelwise.numerics.grids import FloatGrid, Grid
from channelwise.numerics.inputs import largest_code
from channelwise.numerics.transform import ChannelTransform
from channelwise.runtime.gpu.device import on_device
from channelwise.runtime.gpu.kernels import quantize as kernels
from channelwise.runtime.gpu.tiles import rounding_block
from channelwise.runtime.scheme import is_asymmetric

UNSIGNED_CENTRE = 128
LARGEST_SIGNED, LARGEST_UNSIGNED = 127, 255

WIDEST_EXPONENT = 6
"""Exponent bits of floating-point grids whose steps stay within float32; wider ones have no codes of 8 bits anyway."""


@dataclass(frozen=True)
class InputBytes:
    """Codes of inputs: value = (code − zero_point) · step.

    codes: int8 [tokens, padded columns], zeros in the padding; code_sums: int32 [tokens], Σ_k codes_mk, or None where
    nobody asks; step: float32 [tokens], None where it is static; zero_point: a whole number, or int32 [tokens].
    """

    codes: torch.Tensor
    code_sums: torch.Tensor | None
    step: torch.Tensor | None
    zero_point: int | torch.Tensor


@dataclass(frozen=True)
class StaticVectors:
    """multiplier, offset, gain: float32 [channels], offset and gain None where there is none."""

    multiplier: torch.Tensor
    offset: torch.Tensor | None
    gain: torch.Tensor | None


def static_vectors_of(
    channels: int,
    multiplier: torch.Tensor,
    offset: torch.Tensor | None,
    grid: Grid,
    exponents: torch.Tensor | None = None,
) -> StaticVectors:
    """The vectors of clamp(round(x · multiplier + offset)), its codes times 2^(largest − exponent_j) where given.

    multiplier, offset: float32 [] or [channels], from `numerics.inputs.static_vectors`; exponents: integers [channels].
    Raises ValueError if codes leave 8 bits.
    """
    powers = None
    if exponents is not None and exponents.numel():
        powers = exponents.long().max() - exponents.long()
    largest = largest_code(grid) * 2 ** (0 if powers is None else int(powers.max()))
    if not fits_bytes(grid, largest):
        raise ValueError(f"codes up to {largest} do not fit 8 bits")
    unit = lattice_unit(grid) if isinstance(grid, FloatGrid) else 1.0
    gain = torch.full((channels,), 1.0 / unit, device=multiplier.device)
    if powers is not None:
        gain = torch.exp2(powers.float()) / unit
    needed = powers is not None or unit != 1.0
    whole = None if offset is None else offset.expand(channels).contiguous()
    return StaticVectors(multiplier.expand(channels).contiguous(), whole, gain.contiguous() if needed else None)


def fits_bytes(grid: Grid, largest: int) -> bool:
    """Whether codes up to `largest` are bytes, signed ones but for a grid with a zero point."""
    if isinstance(grid, FloatGrid) and grid.exponent_bits > WIDEST_EXPONENT:
        return False
    return largest <= (LARGEST_UNSIGNED if is_asymmetric(grid) else LARGEST_SIGNED)


def static_bytes(
    x: torch.Tensor, vectors: StaticVectors, grid: Grid, padded: int, *, sums: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Codes of a static quantizer, int8 [tokens, padded], and with `sums` their sums int32 [tokens].

    x: [tokens, channels], float32, bfloat16 or float16, channels next to each other in memory.
    """
    tokens, columns = x.shape
    codes = torch.empty(tokens, padded, dtype=torch.int8, device=x.device)
    code_sums = torch.empty(tokens, dtype=torch.int32, device=x.device) if sums else None
    if tokens:
        block, warps = rounding_block(padded)
        with on_device(x.device):
            kernels.static_codes[(tokens,)](
                x, vectors.multiplier, vectors.offset, vectors.gain, codes, code_sums, x.stride(0),
                COLUMNS=columns, PADDED=padded, **_grid(grid), BLOCK=block, num_warps=warps, enable_fp_fusion=False,
            )  # fmt: skip
    return codes, code_sums


def token_bytes(x: torch.Tensor, transform: ChannelTransform, grid: Grid, padded: int, *, sums: bool) -> InputBytes:
    """Codes with a step (and zero point) per token, as `numerics.inputs.token_codes` finds them.

    x, padded, sums: see `static_bytes`. transform: parts float32 [channels].
    """
    tokens, columns = x.shape
    codes = torch.empty(tokens, padded, dtype=torch.int8, device=x.device)
    code_sums = torch.empty(tokens, dtype=torch.int32, device=x.device) if sums else None
    step = torch.empty(tokens, dtype=torch.float32, device=x.device)
    zero_points = torch.empty(tokens, dtype=torch.int32, device=x.device) if is_asymmetric(grid) else None
    span, unit = (grid.largest_value, lattice_unit(grid)) if isinstance(grid, FloatGrid) else (grid.highest, 1.0)
    if tokens:
        block, warps = rounding_block(padded)
        with on_device(x.device):
            kernels.token_codes[(tokens,)](
                x, transform.shift, transform.scale, codes, code_sums, step, zero_points, x.stride(0),
                COLUMNS=columns, PADDED=padded, SPAN=float(span), UNIT=unit, **_grid(grid), BLOCK=block,
                num_warps=warps, enable_fp_fusion=False,
            )  # fmt: skip
    return InputBytes(codes, code_sums, step, 0 if zero_points is None else zero_points)


def _grid(grid: Grid) -> dict[str, float | int]:
    """The grid as the kernels take it."""
    if isinstance(grid, FloatGrid):
        top = grid.largest_value
        steps = 1.5 * 2.0 ** (23 - grid.mantissa_bits)
        return {"LOWEST": -top, "HIGHEST": top, "EXPONENT_BITS": grid.exponent_bits, "STEPS": steps, "CENTRE": 0}
    centre = UNSIGNED_CENTRE if is_asymmetric(grid) else 0
    return {
        "LOWEST": float(grid.lowest), "HIGHEST": float(grid.highest), "EXPONENT_BITS": 0, "STEPS": 0.0, "CENTRE": centre
    }  # fmt: skip
