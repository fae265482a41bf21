"""A layer on the GPU's kernels beside its definition."""

from dataclasses import replace
from typing import Any

import torch

from channelwise.numerics.granularity import expand
from channelwise.runtime.encoding import encoder_of
from channelwise.runtime.execution import Execution
from channelwise.runtime.gpu.executions import WeightOnly, gpu_execution
from channelwise.runtime.gpu.tiles import Tiles
from channelwise.runtime.linear import QuantizedLinear
from tests.runtime.layers import build

HALF_UNIT = {torch.float32: 2.0**-22, torch.bfloat16: 2.0**-15, torch.float16: 2.0**-15}
"""What inputs as whole numbers lose at most, of the largest of their span (`weight_only_product`)."""


def layer_of(*arguments: Any, **options: Any) -> QuantizedLinear:
    """`tests.runtime.layers.build`, where the kernels run."""
    layer = build(*arguments, **options)
    return layer.to("cuda") if torch.cuda.is_available() else layer


def execution_of(layer: QuantizedLinear) -> Execution:
    """The layer on the GPU's kernels."""
    steps = (layer.input_step, layer.input_zero_point, layer.input_exponent)
    execution = gpu_execution(layer._parts(), encoder_of(layer.scheme.inputs, layer.transform, *steps))
    assert execution is not None
    return execution


def assert_equals_definition(
    layer: QuantizedLinear, x: torch.Tensor, rounded_weight: bool = False, tiles: Tiles | None = None
) -> None:
    """Up to float32 rounding of the sum of magnitudes, that of the output's dtype, and that of inputs to whole numbers.

    rounded_weight: whether the weight is rounded to the dtype of x, and the transformed input with it. tiles: None for
    the usual ones.
    """
    x, execution = x.to(layer.weight_scale.device), execution_of(layer)
    if tiles is not None:
        assert isinstance(execution, WeightOnly)
        execution = replace(execution, tiles=tiles)
    found, expected = execution(x), layer.fake_forward(x)
    inputs, weight = layer._decoded_input(x).abs(), layer.dequantized_weight().double().abs()
    magnitude = inputs @ weight.t()
    tolerance = 3e-6 * (magnitude + 1.0) + torch.finfo(found.dtype).eps * expected.abs()
    granularity = layer.scheme.weights.granularity
    if layer.scheme.inputs is None:
        scale = expand(layer.weight_parameters.scale, weight.shape, granularity).double()
        most = (inputs[:, None, :] * scale).amax(-1) * (weight / scale).sum(-1)
        tolerance += 1.0041 * HALF_UNIT[x.dtype] * most
    if rounded_weight:
        tolerance += 2 * torch.finfo(x.dtype).eps * magnitude
    assert found.shape == expected.shape
    assert bool(((found.double() - expected).abs() <= tolerance).all())
