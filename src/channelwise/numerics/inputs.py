"""Quantization of a linear layer's input to codes: static with per-channel vectors, or per token.

A static quantizer is round(x · multiplier_j + offset_j): the channel transform (x − shift)/scale, the step, the zero
point and a power of two per channel all fit into two vectors, so that per-channel treatment costs nothing at run time
(OutlierTune, arXiv 2406.18832; LLM-FP4, arXiv 2310.16836).

Codes are whole numbers, value = (code − zero point) · step. On a floating-point grid they count its smallest value, so
that value = code · step · `code_unit`.
"""

import torch

from channelwise.numerics.floats import lattice_codes, lattice_unit, power_of_two
from channelwise.numerics.grids import FloatGrid, Grid
from channelwise.numerics.quantizer import SMALLEST_SCALE
from channelwise.numerics.transform import ChannelTransform

LARGEST_MULTIPLIER = torch.finfo(torch.float32).max
"""A multiplier is never infinite: inputs of zero would not be zero."""


def code_unit(grid: Grid) -> float:
    """How many steps one code is: 1, or a floating-point grid's smallest value at bias 0."""
    return lattice_unit(grid) if isinstance(grid, FloatGrid) else 1.0


def largest_code(grid: Grid) -> int:
    """The largest whole number that stands for an input: 12 for E2M1, 7 for E1M2, 64 for E3M0."""
    return int(grid.largest_value / lattice_unit(grid)) if isinstance(grid, FloatGrid) else grid.highest


def static_vectors(
    transform: ChannelTransform,
    step: torch.Tensor,
    zero_point: torch.Tensor | None,
    exponents: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Multiplier and offset of the static quantizer, float32 [channels] or [] each; an offset of zero is None.

    step: float32 [], the distance of two codes after the transform, or a floating-point grid's scale. zero_point:
    float32 [] whole number, or None. exponents: integers [channels]; channel j is quantized times 2^exponents_j.
    """
    multiplier = 1.0 / step.double()
    if transform.scale is not None:
        multiplier = multiplier / transform.scale.double()
    if exponents is not None:
        multiplier = multiplier * power_of_two(exponents)
    offset = None if zero_point is None else zero_point.double()
    if transform.shift is not None:
        moved = -transform.shift.double() * multiplier
        offset = moved if offset is None else moved + offset
    return _finite(multiplier), None if offset is None else _finite(offset)


def static_codes(x: torch.Tensor, multiplier: torch.Tensor, offset: torch.Tensor | None, grid: Grid) -> torch.Tensor:
    """Codes clamp(round(x · multiplier + offset)) as float32 whole numbers, shape of x [..., channels]."""
    scaled = x.float() * multiplier
    if offset is not None:
        scaled = scaled.add_(offset)
    if isinstance(grid, FloatGrid):
        return lattice_codes(scaled, grid)
    return scaled.round_().clamp_(grid.lowest, grid.highest)


def token_codes(
    x: torch.Tensor, transform: ChannelTransform, grid: Grid
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Codes with one step (and zero point) per token, found from the token itself.

    x: [..., channels]. Returns codes (float32 whole numbers, shape of x), float32 [..., 1] the value of one code, and
    zero point float32 [..., 1], None for a symmetric or floating-point grid.
    """
    x = transform.apply(x.float()).float()
    if isinstance(grid, FloatGrid):
        scale = torch.clamp(x.abs().amax(dim=-1, keepdim=True) / grid.largest_value, min=SMALLEST_SCALE)
        return lattice_codes(x / scale, grid), scale * lattice_unit(grid), None
    if grid.symmetric:
        step = torch.clamp(x.abs().amax(dim=-1, keepdim=True) / grid.highest, min=SMALLEST_SCALE)
        return (x / step).round_().clamp_(grid.lowest, grid.highest), step, None
    low, high = torch.aminmax(x, dim=-1, keepdim=True)
    low, high = low.clamp_(max=0.0), high.clamp_(min=0.0)
    step = torch.clamp((high - low) / grid.highest, min=SMALLEST_SCALE)
    zero_point = torch.round(-low / step)
    return ((x / step).round_() + zero_point).clamp_(grid.lowest, grid.highest), step, zero_point


def _finite(vector: torch.Tensor) -> torch.Tensor:
    return vector.clamp(-LARGEST_MULTIPLIER, LARGEST_MULTIPLIER).float()
