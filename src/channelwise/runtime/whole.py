"""A weight as whole numbers: what the integer products multiply input codes with."""

from dataclasses import dataclass

import torch

from channelwise.numerics.floats import lattice_unit, power_of_two
from channelwise.numerics.granularity import Granularity
from channelwise.numerics.grids import FloatGrid, Grid, IntegerGrid
from channelwise.numerics.quantizer import Parameters, lattice_values

LARGEST_INT8 = 127
MIDDLE_OF_UINT8 = 128

MAX_PLANES = 3
"""Digits of base 256 that a weight's or an input's whole numbers may have; what has more is computed decoded."""


@dataclass(frozen=True)
class WholeWeight:
    """A weight as integers: value = (values + offset) · scale, times 2^exponent_j where input channel j has one.

    values: int8, or int32 where they are larger, [out_features, in_features]; scale float64 and offset float32
    [out_features], offset None for zero.
    """

    values: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor | None = None

    @property
    def column_sums(self) -> torch.Tensor:
        """Σ_j values_kj, int64 [out_features]."""
        return self.values.sum(dim=1, dtype=torch.int64)


def whole_weight(
    codes: torch.Tensor,
    parameters: Parameters,
    grid: Grid,
    granularity: Granularity,
    exponents: torch.Tensor | None = None,
    with_offset: bool = True,
) -> WholeWeight | None:
    """The weight with one scale per output channel; None where it has groups or its whole numbers are too large.

    A floating-point grid is a lattice of whole multiples of its smallest value: E2M1 is {0, 1, 2, 3, 4, 6, 8, 12}.
    exponents: integers [in_features], those of the input channels: column j is taken times 2^(largest − exponent_j).
    with_offset: whether codes of 8 bits with a zero point may be kept in int8 by an offset.
    """
    if granularity.kind not in ("tensor", "row"):
        return None
    # Products read the scales from memory as they lie, so one scale for all has to be copied out.
    scale = parameters.scale.double().expand(codes.shape[0], 1).reshape(-1).contiguous()
    if parameters.zero_point is not None and grid.highest > LARGEST_INT8 and with_offset and exponents is None:
        zero_point = parameters.zero_point.expand(codes.shape[0], 1).reshape(-1)
        return WholeWeight((codes - MIDDLE_OF_UINT8).to(torch.int8), scale, MIDDLE_OF_UINT8 - zero_point)
    if isinstance(grid, IntegerGrid) and grid.symmetric and grid.highest <= LARGEST_INT8 and exponents is None:
        # Codes are the whole numbers themselves.
        return WholeWeight(codes.to(torch.int8), scale)
    unit = lattice_unit(grid) if isinstance(grid, FloatGrid) else 1.0
    whole = lattice_values(codes, parameters, grid, granularity).div_(unit)
    if exponents is not None and exponents.numel():
        largest = exponents.max()
        # Beyond 2^128 a column becomes infinite, which is too large in any case.
        whole = whole * power_of_two(largest.long() - exponents.long()).float()
        scale = scale * power_of_two(-largest.long())
    size = float(whole.abs().max()) if whole.numel() else 0.0
    if planes_for(size) > MAX_PLANES:
        return None
    return WholeWeight(whole.to(torch.int8 if size <= LARGEST_INT8 else torch.int32), scale * unit)


def planes_for(largest: float) -> int:
    """How many digits −128 … 127 of base 256 the numbers −largest … largest need; `MAX_PLANES` + 1 for too many."""
    reach = 0
    for planes in range(1, MAX_PLANES + 1):
        reach = 256 * reach + LARGEST_INT8
        if largest <= reach:
            return planes
    return MAX_PLANES + 1
