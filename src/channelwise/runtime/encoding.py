"""The input quantizer of a layer: from inputs to codes with their step and zero point."""

from dataclasses import dataclass
from typing import Protocol

import torch

from channelwise.numerics.floats import power_of_two
from channelwise.numerics.grids import Grid
from channelwise.numerics.inputs import code_unit, static_codes, static_vectors, token_codes
from channelwise.numerics.transform import ChannelTransform
from channelwise.runtime.scheme import InputScheme


@dataclass(frozen=True)
class InputCodes:
    """Codes of an input: value = (code − zero_point) · step · 2^−exponent.

    codes: float32 whole numbers [tokens, in_features]; step, zero_point: float32 [] or [tokens, 1]; exponents: integers
    [in_features]. None stands for zeros.
    """

    codes: torch.Tensor
    step: torch.Tensor
    zero_point: torch.Tensor | None
    exponents: torch.Tensor | None = None

    def numbers(self) -> torch.Tensor:
        """(code − zero_point) · 2^−exponent, float32 [tokens, in_features]: the values over their step, exact."""
        codes = self.codes if self.zero_point is None else self.codes - self.zero_point
        return codes if self.exponents is None else codes * power_of_two(-self.exponents.long()).float()

    def values(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The numbers that the codes stand for, computed in `dtype`."""
        codes = self.codes.to(dtype)
        step = self.step.double()
        if self.exponents is not None:
            step = step * power_of_two(-self.exponents.long())
        return (codes if self.zero_point is None else codes - self.zero_point.to(dtype)) * step.to(dtype)


class InputEncoder(Protocol):
    """The input quantizer of a layer."""

    def __call__(self, x: torch.Tensor) -> InputCodes:
        """x: [tokens, in_features], any float dtype."""
        ...


@dataclass(frozen=True)
class StaticEncoder:
    """round(x · multiplier_j + offset_j), saturating; step is the value of one code where the exponent is 0."""

    multiplier: torch.Tensor
    offset: torch.Tensor | None
    grid: Grid
    step: torch.Tensor
    zero_point: torch.Tensor | None
    exponents: torch.Tensor | None

    def __call__(self, x: torch.Tensor) -> InputCodes:
        """See `InputEncoder`."""
        codes = static_codes(x, self.multiplier, self.offset, self.grid)
        return InputCodes(codes, self.step, self.zero_point, self.exponents)


@dataclass(frozen=True)
class TokenEncoder:
    """One step per token, found from the token."""

    transform: ChannelTransform
    grid: Grid

    def __call__(self, x: torch.Tensor) -> InputCodes:
        """See `InputEncoder`."""
        return InputCodes(*token_codes(x, self.transform, self.grid))


def encoder_of(
    inputs: InputScheme | None,
    transform: ChannelTransform,
    step: torch.Tensor | None,
    zero_point: torch.Tensor | None,
    exponents: torch.Tensor | None,
) -> StaticEncoder | TokenEncoder | None:
    """The quantizer of an input scheme, None for inputs in floating point; the three tensors are of static ones."""
    if inputs is None:
        return None
    if step is None:
        return TokenEncoder(transform, inputs.grid)
    multiplier, offset = static_vectors(transform, step, zero_point, exponents)
    return StaticEncoder(multiplier, offset, inputs.grid, step * code_unit(inputs.grid), zero_point, exponents)
