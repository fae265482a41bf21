"""What becomes of inputs before products, in torch's own operations: for compilers, which fuse them with others.

The numbers are those of the kernels, `quantize` and `weight_only`, where every operation rounds as it stands here; a
compiler may join a multiplication and an addition, and then a code at a tie comes out one higher or lower.
"""

import torch

from channelwise.numerics.floats import lattice_unit
from channelwise.numerics.grids import FloatGrid, Grid
from channelwise.numerics.inputs import static_codes, token_codes
from channelwise.numerics.transform import ChannelTransform
from channelwise.runtime.gpu.quantize import UNSIGNED_CENTRE, InputBytes, StaticVectors
from channelwise.runtime.gpu.weight_only import LARGEST_NUMBER, REACH, InputDigits, NumberWeight
from channelwise.runtime.scheme import is_asymmetric

EXPONENT_MASK = 0x7F800000
SMALLEST_STEP = 2.0**-126


def static_bytes(
    x: torch.Tensor, vectors: StaticVectors, grid: Grid, padded: int, zero_point: int, *, sums: bool
) -> InputBytes:
    """See `quantize.static_bytes`; zero_point: of the bytes, for all tokens."""
    codes = static_codes(x, vectors.multiplier, vectors.offset, grid)
    if vectors.gain is not None:
        # The gain has the grid's unit in it, which these codes count already.
        codes = codes * (vectors.gain * (lattice_unit(grid) if isinstance(grid, FloatGrid) else 1.0))
    codes, code_sums = _bytes(codes, grid, padded, sums)
    return InputBytes(codes, code_sums, None, zero_point)


def token_bytes(x: torch.Tensor, transform: ChannelTransform, grid: Grid, padded: int, *, sums: bool) -> InputBytes:
    """See `quantize.token_bytes`."""
    codes, step, zero = token_codes(x, transform, grid)
    codes, code_sums = _bytes(codes, grid, padded, sums)
    zero_points = 0 if zero is None else (zero.to(torch.int32) - UNSIGNED_CENTRE).reshape(-1)
    return InputBytes(codes, code_sums, step.reshape(-1), zero_points)


def input_digits(x: torch.Tensor, weight: NumberWeight, transform: ChannelTransform, count: int) -> InputDigits:
    """See `weight_only.input_digits`, for weights without scales down columns."""
    columns, padded, span = weight.strands.columns, weight.strands.padded_columns, weight.span
    value = torch.nn.functional.pad(transform.apply(x.float()).float(), (0, padded - columns))
    value = value.reshape(x.shape[0], padded // span, span)
    largest = value.abs().amax(dim=-1, keepdim=True)
    power = (largest.view(torch.int32) & EXPONENT_MASK).view(torch.float32)
    own = (power * 2.0 ** -REACH[count]).clamp(min=SMALLEST_STEP)
    own = torch.where(largest > LARGEST_NUMBER[count] * own, 2.0 * own, own)
    number = torch.round(value * (1.0 / own)).to(torch.int32)
    total = number if count == 2 else number.float()
    weighed = total.sum(dim=-1, dtype=total.dtype)[None]
    digits = []
    for _ in range(count):
        digits.append((((number + 128) & 255) - 128).to(torch.int8).reshape(x.shape[0], padded))
        number = (number + 128) >> 8
    return InputDigits(x.shape[0], None, torch.stack(digits[::-1])[None], own[None, ..., 0], weighed, count)


def _bytes(codes: torch.Tensor, grid: Grid, padded: int, sums: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Whole numbers as int8 [tokens, padded], and their sums where asked for."""
    whole = (codes - UNSIGNED_CENTRE if is_asymmetric(grid) else codes).to(torch.int8)
    code_sums = whole.sum(dim=1, dtype=torch.int32) if sums else None
    return torch.nn.functional.pad(whole, (0, padded - whole.shape[1])), code_sums
