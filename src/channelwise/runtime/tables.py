"""What the stored codes of a grid stand for, as the kernels of any device look them up."""

import torch

from channelwise.numerics.floats import lattice_unit
from channelwise.numerics.grids import FloatGrid, Grid
from channelwise.runtime.scheme import is_asymmetric
from channelwise.runtime.whole import LARGEST_INT8


def code_table(grid: Grid) -> torch.Tensor:
    """The lattice value of every code as a checkpoint stores it (from 0 up), float32 [2^bits].

    The code after the highest, where there is one, continues an integer grid and is 0 of a floating-point grid.
    """
    codes = torch.arange(2**grid.bits, dtype=torch.float32) + grid.lowest
    if not isinstance(grid, FloatGrid):
        return codes
    values = torch.cat([grid.positive_values().float(), torch.zeros(1)])
    return torch.sign(codes) * values[codes.abs().long()]


def byte_table(grid: Grid) -> torch.Tensor | None:
    """The whole number that every stored code stands for, int8 [2^bits]; None where they do not fit.

    Those of a grid with a zero point are taken less half their range, which makes them signed.
    """
    values = code_table(grid)
    if isinstance(grid, FloatGrid):
        values = values / lattice_unit(grid)
    elif not grid.symmetric:
        values = values - 2 ** (grid.bits - 1)
    if is_asymmetric(grid):
        return values.to(torch.int8)
    # No weight has the code behind the highest.
    values[-1] = 0.0
    return values.to(torch.int8) if float(values.abs().max()) <= LARGEST_INT8 else None


def largest_power(exponents: torch.Tensor | None) -> int:
    """How many powers of two lie between the input channels' exponents."""
    return 0 if exponents is None or not exponents.numel() else int(exponents.max()) - int(exponents.min())
