"""Number grids of 2 to 8 bits: integers, and floating point without special codes."""

from dataclasses import dataclass

import torch

MIN_BITS = 2
MAX_BITS = 8


@dataclass(frozen=True)
class IntegerGrid:
    """Integer codes: `-(2^(bits-1) - 1) … 2^(bits-1) - 1` if symmetric, `0 … 2^bits - 1` otherwise.

    Raises ValueError if `bits` is not in 2…8.
    """

    bits: int
    symmetric: bool = True

    def __post_init__(self) -> None:
        _check_bits(self.bits)

    @property
    def lowest(self) -> int:
        """The smallest code."""
        return -self.highest if self.symmetric else 0

    @property
    def highest(self) -> int:
        """The largest code (q_max of the papers, for the symmetric grid)."""
        return 2 ** (self.bits - 1) - 1 if self.symmetric else 2**self.bits - 1


@dataclass(frozen=True)
class FloatGrid:
    """EeMm: a sign bit, `exponent_bits` ≥ 1, `mantissa_bits` ≥ 0; every code is a finite number.

    A code is the signed index of a value among the non-negative values in rising order, so the
    codes are `-(2^(e+m) - 1) … 2^(e+m) - 1`. Values are those at exponent bias b̃ = 0
    (LLM-FP4, arXiv 2310.16836, eq. 4): E2M1 is {0, 1, 2, 3, 4, 6, 8, 12}.

    Raises ValueError for fewer than one exponent bit or a width outside 2…8.
    """

    exponent_bits: int
    mantissa_bits: int

    def __post_init__(self) -> None:
        if self.exponent_bits < 1 or self.mantissa_bits < 0:
            raise ValueError(f"no grid E{self.exponent_bits}M{self.mantissa_bits}: needs e >= 1 and m >= 0")
        _check_bits(self.bits)

    @property
    def bits(self) -> int:
        """The width of a code, the sign bit included."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def lowest(self) -> int:
        """The smallest code."""
        return -self.highest

    @property
    def highest(self) -> int:
        """The largest code."""
        return 2 ** (self.exponent_bits + self.mantissa_bits) - 1

    @property
    def largest_value(self) -> float:
        """Q_max at bias 0: (2 − 2^−m) · 2^(2^e − 1)."""
        return (2.0 - 2.0**-self.mantissa_bits) * 2.0 ** (2**self.exponent_bits - 1)

    def positive_values(self) -> torch.Tensor:
        """The non-negative values at bias 0, float64 [2^(e+m)], rising."""
        index = torch.arange(self.highest + 1, dtype=torch.float64)
        steps = 2**self.mantissa_bits
        exponent = torch.clamp(torch.floor(index / steps), min=1.0)
        mantissa = index - (exponent - 1.0) * steps
        return mantissa * torch.exp2(exponent - self.mantissa_bits)


Grid = IntegerGrid | FloatGrid


def float_grids(bits: int) -> tuple[FloatGrid, ...]:
    """Every EeMm of this width with e ≥ 1, the fewest exponent bits first: E1M2, E2M1, E3M0 for 4 bits.

    Raises ValueError for a width that has none (outside 2…8).
    """
    _check_bits(bits)
    return tuple(FloatGrid(exponent_bits, bits - 1 - exponent_bits) for exponent_bits in range(1, bits))


def grid_name(grid: Grid) -> str:
    """`E2M1`, `INT4`, or `UINT4` for an integer grid with a zero point."""
    if isinstance(grid, FloatGrid):
        return f"E{grid.exponent_bits}M{grid.mantissa_bits}"
    return f"{'' if grid.symmetric else 'U'}INT{grid.bits}"


def bias_for_largest(grid: FloatGrid, largest: torch.Tensor) -> torch.Tensor:
    """The real-valued exponent bias b̃ at which the grid's largest value is `largest` (> 0).

    b̃ = 2^e − log2 Q_max + log2(2 − 2^−m) − 1 (LLM-FP4, eq. 8). Any shape, float; same shape back.
    """
    top = torch.log2(torch.tensor(2.0 - 2.0**-grid.mantissa_bits, dtype=torch.float64))
    bias = 2**grid.exponent_bits - torch.log2(largest.double()) + top - 1.0
    return bias.to(largest.dtype)


def scale_for_bias(bias: torch.Tensor) -> torch.Tensor:
    """2^−b̃, the scale that a real-valued exponent bias absorbs, float32.

    The integer part is applied as an exact exponent, so a bias lower by n gives exactly 2^n times the scale.
    """
    negative = -bias.double()
    whole = torch.floor(negative)
    fraction = torch.exp2(negative - whole).float()
    return torch.ldexp(fraction, whole.to(torch.int32))


def _check_bits(bits: int) -> None:
    if not MIN_BITS <= bits <= MAX_BITS:
        raise ValueError(f"{bits} bits: a grid has {MIN_BITS} to {MAX_BITS}")
