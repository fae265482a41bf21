"""The input quantizer of a layer: from inputs to codes with their step and zero point."""

from dataclasses import dataclass
from typing import Protocol

import torch

from channelwise.numerics.grids import IntegerGrid
from channelwise.numerics.inputs import static_codes, static_vectors, token_codes
from channelwise.numerics.transform import ChannelTransform
from channelwise.runtime.scheme import InputScheme


@dataclass(frozen=True)
class InputCodes:
    """Codes float32 [tokens, in_features]; value = (code − zero_point) · step, both float32 [] or [tokens, 1]."""

    codes: torch.Tensor
    step: torch.Tensor
    zero_point: torch.Tensor | None

    def values(self) -> torch.Tensor:
        """The numbers that the codes stand for, float32."""
        return (self.codes if self.zero_point is None else self.codes - self.zero_point) * self.step


class InputEncoder(Protocol):
    """The input quantizer of a layer."""

    def __call__(self, x: torch.Tensor) -> InputCodes:
        """x: [tokens, in_features], any float dtype."""
        ...


@dataclass(frozen=True)
class StaticEncoder:
    """round(x · multiplier_j + offset_j), saturating."""

    multiplier: torch.Tensor
    offset: torch.Tensor | None
    grid: IntegerGrid
    step: torch.Tensor
    zero_point: torch.Tensor | None

    def __call__(self, x: torch.Tensor) -> InputCodes:
        """See `InputEncoder`."""
        return InputCodes(static_codes(x, self.multiplier, self.offset, self.grid), self.step, self.zero_point)


@dataclass(frozen=True)
class TokenEncoder:
    """One step per token, found from the token."""

    transform: ChannelTransform
    grid: IntegerGrid

    def __call__(self, x: torch.Tensor) -> InputCodes:
        """See `InputEncoder`."""
        return InputCodes(*token_codes(x, self.transform, self.grid))


def encoder_of(
    inputs: InputScheme | None,
    transform: ChannelTransform,
    step: torch.Tensor | None,
    zero_point: torch.Tensor | None,
) -> StaticEncoder | TokenEncoder | None:
    """The quantizer of an input scheme, None for inputs in floating point; step and zero_point are of static ones."""
    if inputs is None:
        return None
    if step is None:
        return TokenEncoder(transform, inputs.grid)
    multiplier, offset = static_vectors(transform, step, zero_point)
    return StaticEncoder(multiplier, offset, inputs.grid, step, zero_point)
