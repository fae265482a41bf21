"""Rounding to a floating-point grid without logarithms: fast enough for every input of every layer.

Adding 1.5 · 2^23 steps to a float32 and taking them off again rounds it to a multiple of the step, ties to even: the
sum has no bits below. The step of a value follows from its own exponent bits.
"""

import torch

from channelwise.numerics.grids import FloatGrid

EXPONENT_MASK = 0x7F800000
"""The exponent's bits of a float32: what they leave of a normal number is its power of two."""

WIDEST_EXPONENT = 7
"""Exponent bits whose 1.5 · 2^23 largest steps would leave float32."""

HEADROOM = 2.0**24

BLOCK = 2**15
"""Numbers that stay in a processor's cache from one operation to the next: four times as fast as one after another."""


def float_lattice(scaled: torch.Tensor, grid: FloatGrid) -> torch.Tensor:
    """The grid's values at bias 0 nearest to `scaled`, ties to the even mantissa, saturating (LLM-FP4, eq. 5–7).

    scaled: float32 of any shape, already divided by the scale; left alone. Returns float32 of the same shape, exactly
    what `decode(encode(…))` gives at scale 1; NaN stays NaN.
    """
    return _rounded(scaled, grid, 1.0)


def lattice_codes(scaled: torch.Tensor, grid: FloatGrid) -> torch.Tensor:
    """`float_lattice` in multiples of the grid's `lattice_unit`: whole numbers as float32."""
    return _rounded(scaled, grid, 1.0 / lattice_unit(grid))


def lattice_unit(grid: FloatGrid) -> float:
    """The grid's smallest positive value at bias 0, 2^(1 − m): all of its values are whole multiples of it."""
    return 2.0 ** (1 - grid.mantissa_bits)


def positive_lattice(grid: FloatGrid, device: torch.device) -> torch.Tensor:
    """`grid.positive_values()` as float32 [2^(e+m)], exactly, made on the device: a copy would wait for it."""
    index = torch.arange(grid.highest + 1, device=device)
    exponents = (index >> grid.mantissa_bits).clamp_(min=1)
    mantissas = index - (exponents - 1 << grid.mantissa_bits)
    return (mantissas * power_of_two(exponents - grid.mantissa_bits)).float()


def power_of_two(exponents: torch.Tensor) -> torch.Tensor:
    """2^exponents, exactly, as float64 of the same shape; integers of −1022 … 1023."""
    return (exponents.long() + 1023 << 52).view(torch.float64)


@torch.no_grad()
def _rounded(scaled: torch.Tensor, grid: FloatGrid, factor: float) -> torch.Tensor:
    """`float_lattice` times a power of two."""
    source = scaled.contiguous()
    result = torch.empty_like(source)
    size = BLOCK if source.device.type == "cpu" else max(1, source.numel())
    for part, rounded in zip(source.view(-1).split(size), result.view(-1).split(size), strict=True):
        torch.clamp(part, -grid.largest_value, grid.largest_value, out=rounded)
        _round(rounded, grid)
        if factor != 1.0:
            rounded.mul_(factor)
    return result


def _round(x: torch.Tensor, grid: FloatGrid) -> None:
    """Rounds float32 of the grid's range in place."""
    steps = 1.5 * 2.0 ** (23 - grid.mantissa_bits)
    if grid.exponent_bits == 1:
        # All values have the step that belongs to the power 2.
        x.add_(2.0 * steps).sub_(2.0 * steps)
    elif grid.exponent_bits < WIDEST_EXPONENT:
        _round_binades(x, 2.0, steps)
    else:
        _round_binades(x.div_(HEADROOM), 2.0 / HEADROOM, steps)
        x.mul_(HEADROOM)


def _round_binades(x: torch.Tensor, smallest: float, steps: float) -> None:
    """Rounds x in place to multiples of its power of two, at least `smallest`, times 1.5 · 2^23 / steps."""
    power = (x.view(torch.int32) & EXPONENT_MASK).view(torch.float32).clamp_(min=smallest)
    x.add_(power, alpha=steps).sub_(power, alpha=steps)
