"""Quantization of a linear layer's input to codes: static with per-channel vectors, or per token.

A static quantizer is round(x · multiplier_j + offset_j): the channel transform (x − shift)/scale, the step and the zero
point all fit into two vectors, so that per-channel treatment costs nothing at run time (OutlierTune, arXiv 2406.18832).
"""

import torch

from channelwise.numerics.grids import IntegerGrid
from channelwise.numerics.quantizer import SMALLEST_SCALE
from channelwise.numerics.transform import ChannelTransform


def static_vectors(
    transform: ChannelTransform, step: torch.Tensor, zero_point: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Multiplier and offset of the static quantizer, float32 [channels] or [] each; an offset of zero is None.

    step: float32 [], the distance of two codes after the transform. zero_point: float32 [] whole number, or None.
    """
    multiplier = 1.0 / step.double()
    if transform.scale is not None:
        multiplier = multiplier / transform.scale.double()
    offset = None if zero_point is None else zero_point.double()
    if transform.shift is not None:
        moved = -transform.shift.double() * multiplier
        offset = moved if offset is None else moved + offset
    return multiplier.float(), None if offset is None else offset.float()


def static_codes(
    x: torch.Tensor, multiplier: torch.Tensor, offset: torch.Tensor | None, grid: IntegerGrid
) -> torch.Tensor:
    """Codes clamp(round(x · multiplier + offset)) as float32 whole numbers, shape of x [..., channels]."""
    scaled = x.float() * multiplier
    if offset is not None:
        scaled = scaled + offset
    return scaled.round_().clamp_(grid.lowest, grid.highest)


def token_codes(
    x: torch.Tensor, transform: ChannelTransform, grid: IntegerGrid
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Codes with one step (and zero point) per token, found from the token itself.

    x: [..., channels]. Returns codes (float32 whole numbers, shape of x), step float32 [..., 1] and
    zero point float32 [..., 1], None for a symmetric grid.
    """
    x = transform.apply(x.float()).float()
    if grid.symmetric:
        step = torch.clamp(x.abs().amax(dim=-1, keepdim=True) / grid.highest, min=SMALLEST_SCALE)
        return (x / step).round_().clamp_(grid.lowest, grid.highest), step, None
    low, high = torch.aminmax(x, dim=-1, keepdim=True)
    low, high = low.clamp_(max=0.0), high.clamp_(min=0.0)
    step = torch.clamp((high - low) / grid.highest, min=SMALLEST_SCALE)
    zero_point = torch.round(-low / step)
    return ((x / step).round_() + zero_point).clamp_(grid.lowest, grid.highest), step, zero_point
