"""One linear layer, quantized: the transform folded into its weight, the weight rounded, the input quantizer set up."""

import torch
from torch import nn

from channelwise.methods.site import ChannelStatistics, InputQuantizer, LayerChoice, input_step
from channelwise.model.linears import bias_vector, weight_matrix
from channelwise.numerics.granularity import Granularity, row_slices
from channelwise.numerics.quantizer import encode, joined, parameters_of
from channelwise.numerics.transform import ChannelTransform
from channelwise.runtime.linear import QuantizedLinear
from channelwise.runtime.scheme import InputScheme, LinearScheme, WeightScheme

WIDENED = 2**23
"""Entries of a weight that are in float32 at one time."""


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
    matrix, (grid, granularity) = weight_matrix(linear), (weights.grid, weights.granularity)
    parts = [slice(0, len(matrix))] if granularity.kind in ("tensor", "column") else _parts(matrix, granularity)
    found = [parameters_of(transform.fold_weight(matrix[rows].float()), grid, granularity) for rows in parts]
    return LayerChoice(weights, joined(found, dim=0), inputs)


def quantize_linear(linear: nn.Module, transform: ChannelTransform, layer: LayerChoice) -> QuantizedLinear:
    """The quantized layer; everything is computed in float32, some rows of the weight at a time."""
    weight, bias = weight_matrix(linear), bias_vector(linear)
    folded_bias = None if bias is None else bias.float()
    grid, granularity = layer.weights.grid, layer.weights.granularity
    parts = _parts(weight, granularity)
    if transform.shift is not None:
        biases = [None if folded_bias is None else folded_bias[rows] for rows in parts]
        moved = [transform.fold_bias(weight[rows].float(), own) for rows, own in zip(parts, biases, strict=True)]
        folded_bias = torch.cat([part for part in moved if part is not None])
    codes = layer.codes
    if codes is None:
        codes = torch.empty(weight.shape, dtype=torch.int16, device=weight.device)
        for rows in parts:
            parameters = layer.parameters.of_rows(rows, granularity)
            codes[rows] = encode(transform.fold_weight(weight[rows].float()), parameters, grid, granularity)
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


def _parts(weight: torch.Tensor, granularity: Granularity) -> list[slice]:
    """Rows that are in float32 at one time: all of a large weight would be twice what it is in the model."""
    return row_slices(weight.shape[0], granularity, max(1, WIDENED // weight.shape[1]))
