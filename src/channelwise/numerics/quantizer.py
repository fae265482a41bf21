"""Quantization of a matrix: parameters from ranges, values to codes, codes to values.

All of it computes in float32, whatever comes in, on the device of its input. A large matrix is handled some rows at a
time, so that what is needed on the way stays in a processor's cache and beside the result there is next to nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from channelwise.numerics.floats import positive_lattice, power_of_two
from channelwise.numerics.granularity import Granularity, expand, of_rows, row_slices, value_range
from channelwise.numerics.grids import FloatGrid, Grid, IntegerGrid

SMALLEST_SCALE = 2.0**-126
"""Scales are never below the smallest normal float32, so a range of zero divides by something."""

CACHED = 2**17
"""Entries of a matrix that are handled at a time on a processor."""

PARALLEL = 2**25
"""Entries that are handled at a time elsewhere, where only memory counts."""


@dataclass(frozen=True)
class Parameters:
    """What turns codes into values: value = (code − zero_point) · scale.

    scale: float32, > 0, of the granularity's `parameter_shape`; for a floating-point grid it is 2^−b̃.
    zero_point: float32 whole numbers of the same shape, or None for symmetric and floating-point grids.
    """

    scale: torch.Tensor
    zero_point: torch.Tensor | None = None

    def of_rows(self, rows: slice, granularity: Granularity) -> "Parameters":
        """Those of some rows of the matrix, as views; `rows` cuts no group apart (see `row_slices`)."""
        zero_point = None if self.zero_point is None else of_rows(self.zero_point, rows, granularity)
        return Parameters(of_rows(self.scale, rows, granularity), zero_point)


def parameters_from_range(
    low: torch.Tensor, high: torch.Tensor, grid: Grid, dtype: torch.dtype = torch.float32
) -> Parameters:
    """The parameters whose grid just covers [low, high], float32 of any one shape.

    Symmetric and floating-point grids cover ±max(|low|, |high|). An asymmetric grid always has 0 in its range,
    so that a group of one sign does not collapse (AdaDim's released code lacks that). dtype: scales are rounded to it,
    and are still float32.
    """
    if isinstance(grid, IntegerGrid) and not grid.symmetric:
        low, high = torch.clamp(low.float(), max=0.0), torch.clamp(high.float(), min=0.0)
        scale = _stored((high - low) / grid.highest, dtype)
        zero_point = torch.clamp(torch.round(-low / scale), grid.lowest, grid.highest)
        return Parameters(scale, zero_point)
    largest = torch.maximum(low.abs(), high.abs()).float()
    top = grid.largest_value if isinstance(grid, FloatGrid) else grid.highest
    return Parameters(_stored(largest / top, dtype))


def parameters_of(x: torch.Tensor, grid: Grid, granularity: Granularity) -> Parameters:
    """Min-max parameters of a matrix [rows, columns], scales as they are stored (`scale_dtype`)."""
    return parameters_from_range(*value_range(x, granularity), grid, scale_dtype(granularity))


def joined(parts: Sequence[Parameters], dim: int) -> Parameters:
    """Parameters of matrices that lie below one another (dim 0) or side by side (dim 1)."""
    if len(parts) == 1:
        return parts[0]
    zero_points = [part.zero_point for part in parts if part.zero_point is not None]
    scale = torch.cat([part.scale for part in parts], dim=dim)
    return Parameters(scale, torch.cat(zero_points, dim=dim) if zero_points else None)


def scale_dtype(granularity: Granularity) -> torch.dtype:
    """How scales are stored: in 16 bits where there are many of them."""
    return torch.float16 if granularity.kind in ("row_group", "column_group") else torch.float32


def _stored(scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    limits = torch.finfo(dtype)
    smallest = SMALLEST_SCALE if dtype == torch.float32 else limits.smallest_normal
    return torch.clamp(scale, smallest, limits.max).to(dtype).float()


def encode(x: torch.Tensor, parameters: Parameters, grid: Grid, granularity: Granularity) -> torch.Tensor:
    """Codes of a matrix [rows, columns], int16 of the same shape; out-of-range values saturate, ties go to even."""
    parts = _parts(x, granularity)
    if len(parts) == 1:
        return _codes(x, parameters, grid, granularity)
    codes = torch.empty(x.shape, dtype=torch.int16, device=x.device)
    for rows in parts:
        codes[rows] = _codes(x[rows], parameters.of_rows(rows, granularity), grid, granularity)
    return codes


def decode(codes: torch.Tensor, parameters: Parameters, grid: Grid, granularity: Granularity) -> torch.Tensor:
    """Values of codes [rows, columns], float32 of the same shape."""
    parts = _parts(codes, granularity)
    if len(parts) == 1:
        return _values(codes, parameters, grid, granularity)
    values = torch.empty(codes.shape, device=codes.device)
    for rows in parts:
        values[rows] = _values(codes[rows], parameters.of_rows(rows, granularity), grid, granularity)
    return values


def lattice_values(codes: torch.Tensor, parameters: Parameters, grid: Grid, granularity: Granularity) -> torch.Tensor:
    """Values of codes before the scale: code − zero point, or the float grid's value at bias 0. Float32."""
    if isinstance(grid, FloatGrid):
        return torch.sign(codes).float() * positive_lattice(grid, codes.device)[codes.abs().long()]
    values = codes.float()
    if parameters.zero_point is not None:
        values = values - expand(parameters.zero_point, (codes.shape[0], codes.shape[1]), granularity)
    return values


def fake_quantize(x: torch.Tensor, parameters: Parameters, grid: Grid, granularity: Granularity) -> torch.Tensor:
    """decode(encode(x)): the values that the codes stand for, float32 [rows, columns]."""
    parts = _parts(x, granularity)
    if len(parts) == 1:
        return _values(_codes(x, parameters, grid, granularity), parameters, grid, granularity)
    values = torch.empty(x.shape, device=x.device)
    for rows in parts:
        own = parameters.of_rows(rows, granularity)
        values[rows] = _values(_codes(x[rows], own, grid, granularity), own, grid, granularity)
    return values


def _parts(x: torch.Tensor, granularity: Granularity) -> list[slice]:
    """Rows that are handled together. Compiled code takes all of them: it fuses the steps itself, for any shape."""
    rows = x.shape[0]
    size = CACHED if x.device.type == "cpu" else PARALLEL
    if torch.compiler.is_compiling() or x.numel() <= size:
        return [slice(0, rows)]
    return row_slices(rows, granularity, max(1, size // x.shape[1]))


def _codes(x: torch.Tensor, parameters: Parameters, grid: Grid, granularity: Granularity) -> torch.Tensor:
    shape = (x.shape[0], x.shape[1])
    scaled = x.float() / expand(parameters.scale, shape, granularity)
    if isinstance(grid, FloatGrid):
        return _float_codes(scaled, grid)
    rounded = torch.round(scaled)
    if parameters.zero_point is not None:
        rounded = rounded + expand(parameters.zero_point, shape, granularity)
    return torch.clamp(rounded, grid.lowest, grid.highest).to(torch.int16)


def _values(codes: torch.Tensor, parameters: Parameters, grid: Grid, granularity: Granularity) -> torch.Tensor:
    shape = (codes.shape[0], codes.shape[1])
    return lattice_values(codes, parameters, grid, granularity) * expand(parameters.scale, shape, granularity)


def _float_codes(scaled: torch.Tensor, grid: FloatGrid) -> torch.Tensor:
    """Codes of values already divided by 2^−b̃ (LLM-FP4, eq. 5–7 at b̃ = 0)."""
    magnitude = torch.clamp(scaled.abs(), max=grid.largest_value)
    # frexp gives magnitude = mantissa · 2^exponent with mantissa in [0.5, 1), so floor(log2) = exponent − 1, exactly.
    exponent = torch.clamp(torch.frexp(magnitude).exponent - 1, min=1)
    steps = 2**grid.mantissa_bits
    # Not ldexp, which multiplies by a pow that is not exact everywhere.
    mantissa = torch.round(magnitude * power_of_two(grid.mantissa_bits - exponent).float())
    index = (exponent - 1) * steps + mantissa.to(torch.int32)
    return (torch.sign(scaled).to(torch.int32) * index).to(torch.int16)
