"""Which way a quantized linear layer is computed, and what that needs, made once from the layer's parts."""

import torch

from channelwise.numerics.inputs import largest_code
from channelwise.numerics.quantizer import decode
from channelwise.runtime.encoding import StaticEncoder, TokenEncoder, encoder_of
from channelwise.runtime.execution import (
    DecodedExecution,
    ExactSums,
    Execution,
    LinearParts,
    StaticExecution,
    TokenExecution,
)
from channelwise.runtime.gpu import device
from channelwise.runtime.packed import packed_execution
from channelwise.runtime.planes import wide_product
from channelwise.runtime.products import Product, best_product
from channelwise.runtime.scheme import is_asymmetric
from channelwise.runtime.whole import LARGEST_INT8, WholeWeight, whole_weight


def prepare(parts: LinearParts) -> Execution:
    """The way to compute a layer: packed where there are kernels, else with integers if that is exact, else decoded."""
    scheme = parts.scheme
    steps = (parts.input_step, parts.input_zero_point, parts.input_exponent)
    encoder = encoder_of(scheme.inputs, parts.transform, *steps)
    packed = _on_gpu(parts, encoder) or packed_execution(parts, encoder)
    if packed is not None:
        return packed
    whole = None if encoder is None else _whole_product(parts, encoder)
    if encoder is None or whole is None:
        decoded = decode(parts.codes, parts.weight, scheme.weights.grid, scheme.weights.granularity)
        return DecodedExecution(decoded, parts.bias, parts.transform, encoder)
    if isinstance(encoder, StaticEncoder):
        return _static(encoder, *whole, parts.bias)
    return _per_token(encoder, *whole, parts.bias)


def _on_gpu(parts: LinearParts, encoder: StaticEncoder | TokenEncoder | None) -> Execution | None:
    if not device.available(parts.packed.device):
        return None
    # Triton is imported for GPUs only: it takes time, and need not be there.
    from channelwise.runtime.gpu.executions import gpu_execution

    return gpu_execution(parts, encoder)


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
