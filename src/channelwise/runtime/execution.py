"""How a quantized linear layer is computed: prepared once from its parts, called with inputs [tokens, in_features]."""

from dataclasses import dataclass
from typing import Protocol

import torch

from channelwise.numerics.inputs import largest_code
from channelwise.numerics.quantizer import Parameters, decode
from channelwise.numerics.transform import ChannelTransform
from channelwise.runtime.encoding import InputCodes, InputEncoder, StaticEncoder, TokenEncoder, encoder_of
from channelwise.runtime.planes import wide_product
from channelwise.runtime.products import Product, best_product
from channelwise.runtime.scheme import LinearScheme, is_asymmetric
from channelwise.runtime.whole import LARGEST_INT8, WholeWeight, whole_weight


class Execution(Protocol):
    """From inputs [tokens, in_features], any float dtype, to float32 [tokens, out_features]."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        ...

    def sums(self, x: torch.Tensor) -> torch.Tensor | None:
        """Σ_k (code_k − zero_point) · weight_ok of whole numbers, int64 [tokens, out_features]; None without them."""
        ...


@dataclass(frozen=True)
class LinearParts:
    """A layer's scheme and tensors: codes int16 [out_features, in_features], the rest as in `QuantizedLinear`."""

    scheme: LinearScheme
    codes: torch.Tensor
    weight: Parameters
    bias: torch.Tensor | None
    transform: ChannelTransform
    input_step: torch.Tensor | None
    input_zero_point: torch.Tensor | None
    input_exponent: torch.Tensor | None


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


def prepare(parts: LinearParts) -> Execution:
    """The way to compute a layer: with integers where the scheme allows it, else with the decoded weight."""
    scheme = parts.scheme
    steps = (parts.input_step, parts.input_zero_point, parts.input_exponent)
    encoder = encoder_of(scheme.inputs, parts.transform, *steps)
    whole = None if encoder is None else _whole_product(parts, encoder)
    if encoder is None or whole is None:
        decoded = decode(parts.codes, parts.weight, scheme.weights.grid, scheme.weights.granularity)
        return DecodedExecution(decoded, parts.bias, parts.transform, encoder)
    if isinstance(encoder, StaticEncoder):
        return _static(encoder, *whole, parts.bias)
    return _per_token(encoder, *whole, parts.bias)


def _whole_product(parts: LinearParts, encoder: StaticEncoder | TokenEncoder) -> tuple[Product, WholeWeight] | None:
    """The weight as integers and its product; None where there is no exact one."""
    weights, signed, largest = parts.scheme.weights, not is_asymmetric(encoder.grid), largest_code(encoder.grid)
    narrow = not signed or largest <= LARGEST_INT8
    weight = whole_weight(
        parts.codes, parts.weight, weights.grid, weights.granularity, parts.input_exponent, with_offset=narrow
    )
    if weight is None:
        return None
    if narrow and weight.values.dtype == torch.int8:
        return best_product(weight.values, signed), weight
    product = wide_product(weight.values, largest, signed)
    return None if product is None else (product, weight)


def _static(
    encoder: StaticEncoder, product: Product, weight: WholeWeight, bias: torch.Tensor | None
) -> StaticExecution:
    zero_point = 0.0 if encoder.zero_point is None else float(encoder.zero_point)
    centre = int(min(max(zero_point, encoder.grid.lowest), encoder.grid.highest))
    exact = ExactSums(product, weight.column_sums, weight.offset)
    factor = (weight.scale * encoder.step.double()).float()
    code_factor = None if weight.offset is None else factor * weight.offset
    if centre != zero_point:
        # A zero point outside the codes' range is rare; what the product does not take off goes into the bias.
        sums = exact.column_sums.double()
        if weight.offset is not None:
            sums = sums + weight.offset.double() * weight.values.shape[1]
        rest = (factor.double() * sums * (centre - zero_point)).float()
        bias = rest if bias is None else bias + rest
    return StaticExecution(encoder, product, exact, centre, factor, bias, code_factor)


def _per_token(
    encoder: TokenEncoder, product: Product, weight: WholeWeight, bias: torch.Tensor | None
) -> TokenExecution:
    centre = 2 ** (encoder.grid.bits - 1) if is_asymmetric(encoder.grid) else 0
    exact = ExactSums(product, weight.column_sums, weight.offset)
    factor = weight.scale.float()
    column_factor = factor * exact.column_sums.float()
    code_factor = None if weight.offset is None else factor * weight.offset
    return TokenExecution(encoder, product, exact, centre, factor, column_factor, code_factor, bias)
