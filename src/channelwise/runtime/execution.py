"""How a quantized linear layer is computed with torch: called with inputs [tokens, in_features]."""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch

from channelwise.numerics.quantizer import Parameters
from channelwise.numerics.transform import ChannelTransform
from channelwise.runtime.encoding import InputCodes, InputEncoder, StaticEncoder, TokenEncoder
from channelwise.runtime.packing import unpack
from channelwise.runtime.products import Product
from channelwise.runtime.scheme import LinearScheme


class Execution(Protocol):
    """From inputs [tokens, in_features], any float dtype, to [tokens, out_features], float32 or the input's dtype."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        ...

    def sums(self, x: torch.Tensor) -> torch.Tensor | None:
        """Σ_k (code_k − zero_point) · weight_ok of whole numbers, int64 [tokens, out_features]; None without them."""
        ...


@runtime_checkable
class PackedExecution(Execution, Protocol):
    """An execution that keeps the weight itself, packed at its width."""

    def stored_codes(self) -> torch.Tensor:
        """The weight's codes as a checkpoint stores them, from 0 up, integers [out_features, in_features]."""
        ...


@dataclass(frozen=True)
class LinearParts:
    """A layer's scheme and tensors: packed is the checkpoint's weight_packed, the rest as in `QuantizedLinear`."""

    scheme: LinearScheme
    packed: torch.Tensor
    weight: Parameters
    bias: torch.Tensor | None
    transform: ChannelTransform
    input_step: torch.Tensor | None
    input_zero_point: torch.Tensor | None
    input_exponent: torch.Tensor | None

    @cached_property
    def codes(self) -> torch.Tensor:
        """The weight's codes, int16 [out_features, in_features]."""
        grid = self.scheme.weights.grid
        return unpack(self.packed, grid.bits, self.scheme.in_features).to(torch.int16) + grid.lowest


@dataclass(frozen=True)
class DecodedExecution:
    """The decoded weight in float32, for weights in groups, inputs without codes, and the widest grids."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    transform: ChannelTransform
    encoder: InputEncoder | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See `Execution`."""
        values = self.transform.apply(x.float()) if self.encoder is None else self.encoder(x).values()
        return torch.nn.functional.linear(values, self.weight, self.bias)

    def sums(self, x: torch.Tensor) -> torch.Tensor | None:
        """See `Execution`."""
        return None


@dataclass(frozen=True)
class ExactSums:
    """What `Execution.sums` gives; column_sums: Σ_k value_ok, int64 [out_features], offset as in `WholeWeight`."""

    product: Product
    column_sums: torch.Tensor
    offset: torch.Tensor | None

    def __call__(self, inputs: InputCodes) -> torch.Tensor:
        """From the codes of [tokens, in_features]."""
        sums, code_sums = self.product.sums(inputs.codes, 0), inputs.codes.long().sum(dim=1, keepdim=True)
        if inputs.zero_point is not None:
            zero_point = inputs.zero_point.long()
            sums = sums - zero_point * self.column_sums
            code_sums = code_sums - zero_point * inputs.codes.shape[1]
        return sums if self.offset is None else sums + code_sums * self.offset.long()


@dataclass(frozen=True)
class StaticExecution:
    """Integer product with static inputs: everything but the codes is in the epilogue's factor and bias.

    centre: the whole zero point that the product takes off; code_factor: factor of Σ_k (code_k − zero_point) for
    weights with an offset, float32 [out_features] or None, and zero_point belongs to it.
    """

    encoder: StaticEncoder
    product: Product
    exact: ExactSums
    centre: int
    factor: torch.Tensor
    bias: torch.Tensor | None
    code_factor: torch.Tensor | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See `Execution`."""
        codes = self.encoder(x).codes
        y = self.product(codes, self.centre, self.factor, self.bias)
        if self.code_factor is None:
            return y
        code_sums = codes.sum(dim=1) - self.centre * codes.shape[1]
        return y.addr_(code_sums, self.code_factor)

    def sums(self, x: torch.Tensor) -> torch.Tensor | None:
        """See `Execution`."""
        return self.exact(self.encoder(x))


@dataclass(frozen=True)
class TokenExecution:
    """Integer product with a step per token, applied after the product.

    factor: the weight's scale; column_factor: factor · Σ_k value_ok, what a token's zero point is multiplied with;
    code_factor: factor · offset of weights with an offset. Float32 [out_features].
    """

    encoder: TokenEncoder
    product: Product
    exact: ExactSums
    centre: int
    factor: torch.Tensor
    column_factor: torch.Tensor
    code_factor: torch.Tensor | None
    bias: torch.Tensor | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See `Execution`."""
        inputs = self.encoder(x)
        y = self.product(inputs.codes, self.centre, self.factor, None)
        if inputs.zero_point is not None:
            y.addr_(inputs.zero_point[:, 0] - self.centre, self.column_factor, alpha=-1)
        if self.code_factor is not None:
            y.addr_(self._code_sums(inputs), self.code_factor)
        return y.mul_(inputs.step) if self.bias is None else torch.addcmul(self.bias, y, inputs.step)

    def sums(self, x: torch.Tensor) -> torch.Tensor | None:
        """See `Execution`."""
        return self.exact(self.encoder(x))

    @staticmethod
    def _code_sums(inputs: InputCodes) -> torch.Tensor:
        sums = inputs.codes.sum(dim=1)
        return sums if inputs.zero_point is None else sums - inputs.zero_point[:, 0] * inputs.codes.shape[1]
