"""One linear layer, quantized: the transform folded into its weight, the weight rounded, the input quantizer set up."""

import torch
from torch import nn

from channelwise.methods.site import ChannelStatistics, input_step
from channelwise.model.linears import bias_vector, weight_matrix
from channelwise.numerics.quantizer import encode, parameters_of
from channelwise.numerics.transform import ChannelTransform
from channelwise.runtime.linear import QuantizedLinear
from channelwise.runtime.scheme import InputScheme, LinearScheme, WeightScheme


def quantize_linear(
    linear: nn.Module,
    transform: ChannelTransform,
    statistics: ChannelStatistics | None,
    weights: WeightScheme,
    inputs: InputScheme | None,
    clip: float = 1.0,
) -> QuantizedLinear:
    """The quantized layer; everything is computed in float32.

    statistics may be None only where the input quantizer is not static. clip: the share of the input's range that a
    static quantizer covers; what is beyond saturates.
    """
    weight = weight_matrix(linear).detach().float()
    bias = bias_vector(linear)
    folded = transform.fold_weight(weight)
    folded_bias = transform.fold_bias(weight, None if bias is None else bias.detach().float())
    parameters = parameters_of(folded, weights.grid, weights.granularity)
    codes = encode(folded, parameters, weights.grid, weights.granularity)
    step: torch.Tensor | None = None
    zero_point: torch.Tensor | None = None
    if inputs is not None and inputs.kind == "static":
        if statistics is None:
            raise ValueError("a static input quantizer needs statistics")
        step, zero_point = input_step(statistics, transform, inputs.grid, clip)
    scheme = LinearScheme(
        in_features=weight.shape[1],
        out_features=weight.shape[0],
        weights=weights,
        inputs=inputs,
        bias=folded_bias is not None,
        shift=transform.shift is not None,
        scale=transform.scale is not None,
    )
    return QuantizedLinear.from_parts(scheme, codes, parameters, folded_bias, transform, step, zero_point)
