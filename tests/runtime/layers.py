"""Quantized layers with random contents."""

import torch

from channelwise.numerics.granularity import expand
from channelwise.numerics.grids import FloatGrid
from channelwise.numerics.quantizer import encode, parameters_from_range, parameters_of
from channelwise.numerics.transform import ChannelTransform
from channelwise.runtime.linear import QuantizedLinear
from channelwise.runtime.scheme import InputScheme, LinearScheme, WeightScheme

LARGEST_INTEGER_EXPONENT = 7
"""What exponents of integer grids are drawn up to, as those of E3M0 are."""


def build(
    rows: int,
    columns: int,
    weights: WeightScheme,
    inputs: InputScheme | None,
    bias: bool = True,
    shift: bool = False,
    scale: bool = False,
    exponents: bool = False,
    seed: int = 0,
) -> QuantizedLinear:
    """A layer with random contents; its static input range is about ±2 after the transform, divided by 2^exponent."""
    torch.manual_seed(seed)
    transform = ChannelTransform(torch.randn(columns) if shift else None, torch.rand(columns) + 0.1 if scale else None)
    weight = torch.randn(rows, columns)
    parameters = parameters_of(weight, weights.grid, weights.granularity)
    step = zero_point = None
    if inputs is not None and inputs.kind == "static":
        range_ = parameters_from_range(torch.tensor(-1.5), torch.tensor(2.0), inputs.grid)
        step, zero_point = range_.scale, range_.zero_point
    return QuantizedLinear.from_parts(
        LinearScheme(columns, rows, weights, inputs, bias=bias, shift=shift, scale=scale, exponents=exponents),
        encode(weight, parameters, weights.grid, weights.granularity),
        parameters,
        torch.randn(rows) if bias else None,
        transform,
        step,
        zero_point,
        torch.randint(0, largest_exponent(inputs) + 1, (columns,)) if exponents else None,
    )


def largest_exponent(inputs: InputScheme | None) -> int:
    """The largest exponent that a layer of such inputs may have, LLM-FP4's 2^e − 1."""
    grid = None if inputs is None else inputs.grid
    return 2**grid.exponent_bits - 1 if isinstance(grid, FloatGrid) else LARGEST_INTEGER_EXPONENT


def assert_equals_definition(layer: QuantizedLinear, x: torch.Tensor) -> None:
    """Up to float32 rounding of the sum of magnitudes, that of the output's dtype, and that of inputs as whole numbers.

    The last is the kernels' with weights only and few rows: half of a unit, which is at most 1.0041 · 2^-15 (of float32
    2^-23) of the largest input, times its column's scale where those differ.
    """
    found, expected = layer(x), layer.fake_forward(x)
    assert found.dtype == x.dtype
    assert found.shape == expected.shape
    inputs, weight = layer._decoded_input(x).abs(), layer.dequantized_weight().double().abs()
    tolerance = 3e-6 * (inputs @ weight.t() + 1.0) + torch.finfo(x.dtype).eps * expected.abs()
    grouped = layer.scheme.weights.granularity.kind not in ("row", "tensor")
    if layer.scheme.inputs is None or grouped:
        exact = x.dtype == torch.float32 or layer.scheme.inputs is not None
        unit = 1.0041 * (2.0**-23 if exact else 2.0**-15)
        scale = expand(layer.weight_parameters.scale, weight.shape, layer.scheme.weights.granularity).double()
        tolerance += unit * (inputs[..., None, :] * scale).amax(-1) * (weight / scale).sum(-1)
    weights = layer.scheme.weights
    down_columns, narrow = weights.granularity.kind in ("column", "column_group"), weights.grid.bits <= 4
    if x.dtype != torch.float32 and ((down_columns and len(x) > 16) or (grouped and narrow and len(x) >= 256)):
        # So many rows of 16 bits meet weights that are rounded to bfloat16.
        tolerance += 2.0**-8 * (inputs @ weight.t())
    assert bool(((found.double() - expected).abs() <= tolerance).all())
