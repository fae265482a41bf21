"""What LLM-FP4's search is given, and the formats that it looks for (arXiv 2310.16836, §3.2 and §4)."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch

from channelwise.methods.site import Importance
from channelwise.numerics.floats import float_lattice, lattice_codes, lattice_unit, power_of_two
from channelwise.numerics.grids import FloatGrid
from channelwise.numerics.quantizer import SMALLEST_SCALE
from channelwise.runtime.trial import fits_bytes
from channelwise.runtime.whole import WholeWeight

CHUNK = 2**22
"""Numbers that a batch of candidates may have: 16 MiB."""


@dataclass(frozen=True)
class LayerProblem:
    """What the search is given, all float32.

    inputs: [tokens, channels]. weight: [out_features, channels]. largest: [channels], max|X_j| over the calibration
    set. importance: of the tokens and outputs, or None for 1 everywhere.
    """

    inputs: torch.Tensor
    weight: torch.Tensor
    largest: torch.Tensor
    importance: Importance | None = None

    @cached_property
    def outputs(self) -> torch.Tensor:
        """What the layer gives without any rounding, [tokens, out_features]."""
        return self.inputs @ self.weight.t()

    def loss(self, inputs: torch.Tensor, weight: torch.Tensor) -> float:
        """Sum over features, mean over tokens, of the weighted squared error of X̃ W̃ᵀ."""
        total = torch.zeros((), dtype=torch.float64, device=weight.device)
        for part in chunks(len(self.inputs), len(self.weight)):
            error = self.inputs[part] @ self.weight.t() - inputs[part] @ weight.t()
            total += self.by_token(self.by_output(error.square_()).sum(dim=1), part).sum(dtype=torch.float64)
        return float(total) / max(len(self.inputs), 1)

    def by_token(self, x: torch.Tensor, part: slice = slice(None), power: float = 1.0) -> torch.Tensor:
        """x [..., tokens] of some tokens, times a power of their importance."""
        return x if self.importance is None else x * self.importance.tokens[part] ** power

    def by_output(self, x: torch.Tensor, part: slice = slice(None), power: float = 1.0) -> torch.Tensor:
        """x [..., outputs] of some outputs, times a power of their importance."""
        return x if self.importance is None else x * self.importance.outputs[part] ** power


@dataclass(frozen=True)
class WeightFormat:
    """A weight's format: one grid for the layer, one scale for each output channel, float32 [out_features, 1]."""

    grid: FloatGrid
    scale: torch.Tensor

    def quantized(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight's rounded values, float32."""
        return float_lattice(weight / self.scale, self.grid).mul_(self.scale)

    def whole(self, weight: torch.Tensor) -> WholeWeight | None:
        """The same as whole numbers in int8; None where they do not fit."""
        if not fits_bytes(self.grid, 0):
            return None
        codes = lattice_codes(weight / self.scale, self.grid).to(torch.int8)
        return WholeWeight(codes, self.scale[:, 0].double() * lattice_unit(self.grid))


@dataclass(frozen=True)
class InputFormat:
    """An input's format: grid, scale 2^−ρ (float32 []), and b_j, int64 [channels], None without a pre-shift.

    Of several candidates side by side: scale float32 [candidates, 1], b_j [candidates, channels].
    """

    grid: FloatGrid
    scale: torch.Tensor
    exponents: torch.Tensor | None

    def quantized(self, x: torch.Tensor) -> torch.Tensor:
        """The input's rounded values, float32."""
        scales = self.channel_scales
        return float_lattice(x / scales, self.grid).mul_(scales)

    @property
    def channel_scales(self) -> torch.Tensor:
        """2^−(ρ + b_j), float32 [channels], or the scale's shape without a pre-shift."""
        if self.exponents is None:
            return self.scale
        return (self.scale.double() * power_of_two(-self.exponents)).float()


def input_format(largest: torch.Tensor, grid: FloatGrid, ratio: torch.Tensor | float, pre_shift: bool) -> InputFormat:
    """The format whose largest value is `ratio` times the largest input.

    largest: float32 [channels]. ratio: a number, float32 [], or [candidates, 1] for so many formats, of which nothing
    is read back from the device. With the pre-shift b_j = clip(round(b̃_j − ρ), 0, 2^e − 1), b̃_j from max|X_j|
    (eq. 10–12): at ratio 1, ρ is the smallest channel's bias and the largest channel's b_j is 0.
    """
    top = largest.amax() * ratio
    scale = torch.clamp(top / grid.largest_value, min=SMALLEST_SCALE)
    if not pre_shift:
        return InputFormat(grid, scale, None)
    # b̃_j − ρ is how many times the channel fits into the range, in powers of two; a channel of zeros fits anywhere.
    fits = torch.log2(top.double() / largest.double().clamp(min=SMALLEST_SCALE))
    exponents = torch.round(fits).clamp(0, 2**grid.exponent_bits - 1).long()
    widest = torch.where(largest > 0, exponents, 0).amax(dim=-1, keepdim=True)
    return InputFormat(grid, scale, torch.minimum(exponents, widest))


def row_scale(weight: torch.Tensor, grid: FloatGrid, ratio: torch.Tensor | float) -> torch.Tensor:
    """Scales at which the grid reaches `ratio` times each row's largest |w|; float32 [..., out_features, 1]."""
    largest = weight.abs().amax(dim=1, keepdim=True)
    return torch.clamp(largest * ratio / grid.largest_value, min=SMALLEST_SCALE)


def chunks(size: int, numbers: int) -> Iterator[slice]:
    """Slices of 0 … size whose entries, of so many numbers each, keep within `CHUNK`."""
    step = max(1, CHUNK // max(numbers, 1))
    return (slice(start, min(start + step, size)) for start in range(0, size, step))
