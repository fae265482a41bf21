"""One linear layer, quantized: the transform folded into its weight, the weight rounded, the input quantizer set up."""

from torch import nn

from channelwise.methods.site import ChannelStatistics, InputQuantizer, LayerChoice, input_step
from channelwise.model.linears import bias_vector, weight_matrix
from channelwise.numerics.quantizer import encode, parameters_of
from channelwise.numerics.transform import ChannelTransform
from channelwise.runtime.linear import QuantizedLinear
from channelwise.runtime.scheme import InputScheme, LinearScheme, WeightScheme


def plain_input(
    transform: ChannelTransform, statistics: ChannelStatistics | None, inputs: InputScheme | None, clip: float = 1.0
) -> InputQuantizer | None:
    """The input quantizer with a min-max range, None for inputs in floating point.

    statistics may be None only where the quantizer is not static. clip: the share of the input's range that a static
    one covers; what is beyond saturates.
    """
    if inputs is None:
        return None
    if inputs.kind == "token":
        return InputQuantizer(inputs)
    if statistics is None:
        raise ValueError("a static input quantizer needs statistics")
    return InputQuantizer(inputs, *input_step(statistics, transform, inputs.grid, clip))


def plain_layer(
    linear: nn.Module, transform: ChannelTransform, weights: WeightScheme, inputs: InputQuantizer | None
) -> LayerChoice:
    """The layer's quantizers with the weight's min-max range, rounded to nearest."""
    folded = transform.fold_weight(weight_matrix(linear).detach().float())
    return LayerChoice(weights, parameters_of(folded, weights.grid, weights.granularity), inputs)


def quantize_linear(linear: nn.Module, transform: ChannelTransform, layer: LayerChoice) -> QuantizedLinear:
    """The quantized layer; everything is computed in float32."""
    weight = weight_matrix(linear).detach().float()
    bias = bias_vector(linear)
    folded_bias = transform.fold_bias(weight, None if bias is None else bias.detach().float())
    grid, granularity = layer.weights.grid, layer.weights.granularity
    codes = layer.codes
    if codes is None:
        codes = encode(transform.fold_weight(weight), layer.parameters, grid, granularity)
    inputs = layer.inputs
    scheme = LinearScheme(
        in_features=weight.shape[1],
        out_features=weight.shape[0],
        weights=layer.weights,
        inputs=None if inputs is None else inputs.scheme,
        bias=folded_bias is not None,
        shift=transform.shift is not None,
        scale=transform.scale is not None,
        exponents=inputs is not None and inputs.exponents is not None,
    )
    return QuantizedLinear.from_parts(
        scheme,
        codes,
        layer.parameters,
        folded_bias,
        transform,
        None if inputs is None else inputs.step,
        None if inputs is None else inputs.zero_point,
        None if inputs is None else inputs.exponents,
    )
