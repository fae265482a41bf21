"""How a quantized linear layer is computed: prepared once from its parts, called with inputs [tokens, in_features]."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from channelwise.numerics.granularity import Granularity
from channelwise.numerics.grids import FloatGrid, Grid
from channelwise.numerics.quantizer import Parameters, decode, lattice_values
from channelwise.numerics.transform import ChannelTransform
from channelwise.runtime.encoding import InputCodes, InputEncoder, StaticEncoder, TokenEncoder, encoder_of
from channelwise.runtime.products import Product, best_product
from channelwise.runtime.scheme import LinearScheme

LARGEST_INT8 = 127
MIDDLE_OF_UINT8 = 128

Execution = Callable[[torch.Tensor], torch.Tensor]
"""From inputs [tokens, in_features], any float dtype, to float32 [tokens, out_features]."""


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


@dataclass(frozen=True)
class Int8Weight:
    """A weight as integers: value = (values + offset) · scale.

    values: int8 [out_features, in_features]; scale, offset: float32 [out_features], offset None for zero.
    """

    values: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor | None


@dataclass(frozen=True)
class DecodedExecution:
    """The decoded weight in float32, for weights in groups, wide floating-point grids, and inputs without codes."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    transform: ChannelTransform
    encoder: InputEncoder | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See `Execution`."""
        values = self.transform.apply(x.float()) if self.encoder is None else self.encoder(x).values()
        return torch.nn.functional.linear(values, self.weight, self.bias)


@dataclass(frozen=True)
class StaticExecution:
    """Integer product with static inputs: everything but the codes is in the epilogue's factor and bias.

    centre: the whole zero point that the product takes off; code_factor: factor of Σ_k (code_k − zero_point) for
    weights with an offset, float32 [out_features] or None, and zero_point belongs to it.
    """

    encoder: StaticEncoder
    product: Product
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


@dataclass(frozen=True)
class TokenExecution:
    """Integer product with a step per token, applied after the product.

    column_factor: scale · Σ_k value_ok, float32 [out_features], what a token's zero point is multiplied with.
    """

    encoder: TokenEncoder
    product: Product
    centre: int
    weight: Int8Weight
    column_factor: torch.Tensor
    bias: torch.Tensor | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See `Execution`."""
        inputs = self.encoder(x)
        y = self.product(inputs.codes, self.centre, self.weight.scale, None)
        if inputs.zero_point is not None:
            y.addr_(inputs.zero_point[:, 0] - self.centre, self.column_factor, alpha=-1)
        if self.weight.offset is not None:
            y.addr_(self._code_sums(inputs), self.weight.scale * self.weight.offset)
        return y.mul_(inputs.step) if self.bias is None else torch.addcmul(self.bias, y, inputs.step)

    @staticmethod
    def _code_sums(inputs: InputCodes) -> torch.Tensor:
        sums = inputs.codes.sum(dim=1)
        return sums if inputs.zero_point is None else sums - inputs.zero_point[:, 0] * inputs.codes.shape[1]


def prepare(parts: LinearParts) -> Execution:
    """The way to compute a layer: with integers where the scheme allows it, else with the decoded weight."""
    scheme = parts.scheme
    encoder = encoder_of(scheme.inputs, parts.transform, parts.input_step, parts.input_zero_point)
    weight = int8_weight(parts.codes, parts.weight, scheme.weights.grid, scheme.weights.granularity)
    if encoder is None or weight is None:
        decoded = decode(parts.codes, parts.weight, scheme.weights.grid, scheme.weights.granularity)
        return DecodedExecution(decoded, parts.bias, parts.transform, encoder)
    product = best_product(weight.values, signed=encoder.grid.symmetric)
    if isinstance(encoder, StaticEncoder):
        return _static(encoder, product, weight, parts.bias)
    centre = 0 if encoder.grid.symmetric else 2 ** (encoder.grid.bits - 1)
    column_factor = weight.scale * weight.values.sum(dim=1, dtype=torch.int64).float()
    return TokenExecution(encoder, product, centre, weight, column_factor, parts.bias)


def int8_weight(codes: torch.Tensor, parameters: Parameters, grid: Grid, granularity: Granularity) -> Int8Weight | None:
    """The weight as int8 with one scale per output channel; None where it has groups or its grid is too wide.

    A floating-point grid is a lattice of whole multiples of its smallest value: E2M1 is {0, 1, 2, 3, 4, 6, 8, 12}.
    """
    if granularity.kind not in ("tensor", "row"):
        return None
    # Products read the scales from memory as they lie, so one scale for all has to be copied out.
    scale = parameters.scale.expand(codes.shape[0], 1).reshape(-1).contiguous()
    lattice = lattice_values(codes, parameters, grid, granularity)
    if isinstance(grid, FloatGrid):
        unit = float(grid.positive_values()[1])
        if grid.largest_value / unit > LARGEST_INT8:
            return None
        return Int8Weight((lattice / unit).to(torch.int8), scale * unit, None)
    if parameters.zero_point is None or grid.highest <= LARGEST_INT8:
        return Int8Weight(lattice.to(torch.int8), scale, None)
    zero_point = parameters.zero_point.expand(codes.shape[0], 1).reshape(-1)
    return Int8Weight((codes - MIDDLE_OF_UINT8).to(torch.int8), scale, MIDDLE_OF_UINT8 - zero_point)


def _static(encoder: StaticEncoder, product: Product, weight: Int8Weight, bias: torch.Tensor | None) -> StaticExecution:
    zero_point = 0.0 if encoder.zero_point is None else float(encoder.zero_point)
    centre = int(min(max(zero_point, encoder.grid.lowest), encoder.grid.highest))
    factor = (weight.scale.double() * encoder.step.double()).float()
    code_factor = None if weight.offset is None else factor * weight.offset
    if centre != zero_point:
        # A zero point outside the codes' range is rare; what the product does not take off goes into the bias.
        sums = weight.values.sum(dim=1, dtype=torch.int64).double()
        if weight.offset is not None:
            sums = sums + weight.offset.double() * weight.values.shape[1]
        rest = (factor.double() * sums * (centre - zero_point)).float()
        bias = rest if bias is None else bias + rest
    return StaticExecution(encoder, product, centre, factor, bias, code_factor)
