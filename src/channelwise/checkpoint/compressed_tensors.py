"""One quantized layer in compressed-tensors' terms, and as that library's own compressors store it.

A weight there is (code − zero point) · scale with codes −2^(b−1) … 2^(b−1) − 1. Every grid of whole multiples of one
number fits: our symmetric and asymmetric integers, and floating-point weights as integers of their smallest value
(E1M2: up to 7, E2M1: up to 12, E3M0: up to 64), exactly. Its own floating-point types have other scales: FP4 takes a
scale for 16 or 32 inputs.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from channelwise.errors import InputError
from channelwise.numerics.floats import lattice_unit
from channelwise.numerics.granularity import Granularity, expand
from channelwise.numerics.grids import FloatGrid, Grid, IntegerGrid, grid_name
from channelwise.numerics.inputs import largest_code
from channelwise.numerics.quantizer import SMALLEST_SCALE, Parameters, lattice_values
from channelwise.numerics.transform import ChannelTransform
from channelwise.runtime.linear import QuantizedLinear
from channelwise.runtime.scheme import InputScheme, LinearScheme, WeightScheme, is_asymmetric

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationScheme

Tensors = dict[str, torch.Tensor]

WHOLE_BYTES, PACKED = "int-quantized", "pack-quantized"

WIDTHS_OF_FLOATS = (4, 8)
"""Widths for floating-point weights stored as integers: the ones that runtimes have kernels for."""


@dataclass(frozen=True)
class IntegerWeight:
    """A weight as its codes: value = (code − zero_point) · scale, scale and zero point of the granularity's shape.

    codes: int16 [out_features, in_features], within `bits` signed bits; scale: float32; zero_point: int8 or None.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor | None
    bits: int
    granularity: Granularity


def scheme_data(scheme: LinearScheme, dimensions: int = 3) -> dict[str, Any]:
    """A linear layer's scheme as the entries of a config group, without targets.

    dimensions: of the layer's input tensor. Raises InputError, a reason without the layer's name, for what
    compressed-tensors cannot express.
    """
    inputs = None if scheme.inputs is None else _input_arguments(scheme.inputs, scheme.in_features, dimensions)
    if scheme.exponents:
        raise InputError("its input has a power of two for every channel, which the format has no place for")
    weights = _weight_arguments(scheme)
    form = WHOLE_BYTES if inputs is not None and weights["num_bits"] == 8 else PACKED
    return {"weights": weights, "input_activations": inputs, "output_activations": None, "format": form}


def integer_weight(codes: torch.Tensor, parameters: Parameters, weights: WeightScheme) -> IntegerWeight:
    """The same weight on whole numbers; codes int16 as `numerics.encode` gives them."""
    grid = weights.grid
    if isinstance(grid, FloatGrid):
        whole = lattice_values(codes, parameters, grid, weights.granularity) / lattice_unit(grid)
        scale = parameters.scale * lattice_unit(grid)
        return IntegerWeight(whole.to(torch.int16), scale, None, weight_bits(grid), weights.granularity)
    if parameters.zero_point is None:
        return IntegerWeight(codes, parameters.scale, None, grid.bits, weights.granularity)
    middle = 2 ** (grid.bits - 1)
    zero_point = (parameters.zero_point - middle).to(torch.int8)
    return IntegerWeight(codes - middle, parameters.scale, zero_point, grid.bits, weights.granularity)


def rows_divided(weight: IntegerWeight, divisors: torch.Tensor) -> IntegerWeight:
    """Row k of the weight divided by divisors[k] > 0, float64 [out_features], in its scales alone.

    Raises InputError, a reason, where rows with different divisors share a scale.
    """
    kind, size = weight.granularity.kind, weight.granularity.group_size or 1
    if kind in ("row", "row_group"):
        per_scale = divisors
    else:
        run = size if kind == "column_group" else len(divisors)
        firsts = divisors[::run]
        if not torch.equal(firsts.repeat_interleave(run)[: len(divisors)], divisors):
            raise InputError("its output channels share scales, so that they cannot be rescaled one by one")
        per_scale = firsts
    scale = (weight.scale.double() / per_scale.to(weight.scale.device)[:, None]).clamp(min=SMALLEST_SCALE).float()
    return IntegerWeight(weight.codes, scale, weight.zero_point, weight.bits, weight.granularity)


def compressed(weight: IntegerWeight, scheme: "QuantizationScheme") -> Tensors:
    """The weight as compressed-tensors' compressor of the scheme's format stores it, under its local names.

    Raises ValueError if its decompressor does not give back every number of the weight.
    """
    from compressed_tensors.compressors import BaseCompressor

    compressor = BaseCompressor.get_value_from_registry(str(getattr(scheme.format, "value", scheme.format)))
    values = decoded(weight)
    given: Tensors = {"weight": values, "weight_scale": weight.scale}
    if weight.zero_point is not None:
        given["weight_zero_point"] = weight.zero_point
    stored: Tensors = compressor.compress(given, scheme)
    if not torch.equal(compressor.decompress(stored, scheme)["weight"], values):
        raise ValueError("compressed-tensors does not give back the weight that it was given")
    return stored


def decoded(weight: IntegerWeight) -> torch.Tensor:
    """The values of the codes, float32 [out_features, in_features]."""
    shape = (weight.codes.shape[0], weight.codes.shape[1])
    values = weight.codes.float()
    if weight.zero_point is not None:
        values = values - expand(weight.zero_point.float(), shape, weight.granularity)
    return values * expand(weight.scale, shape, weight.granularity)


def layer_tensors(layer: QuantizedLinear, scheme: "QuantizationScheme", outputs: ChannelTransform) -> Tensors:
    """All tensors of a layer whose input transform is folded elsewhere, by local name.

    outputs: what the layer's output y is to become, (y − shift) / scale, for the layers behind it.
    """
    weight = integer_weight(layer.codes(), layer.weight_parameters, layer.scheme.weights)
    if outputs.scale is not None:
        weight = rows_divided(weight, outputs.scale)
    tensors = compressed(weight, scheme)
    if layer.bias is not None:
        tensors["bias"] = outputs.apply(layer.bias.double()).float()
    if layer.input_step is not None:
        tensors["input_scale"] = layer.input_step.reshape(1)
    if layer.input_zero_point is not None and layer.scheme.inputs is not None:
        middle = 2 ** (layer.scheme.inputs.grid.bits - 1)
        tensors["input_zero_point"] = (layer.input_zero_point - middle).to(torch.int8).reshape(1)
    return tensors


def weight_bits(grid: Grid) -> int:
    """The width of a weight's whole numbers. Raises InputError, a reason, for a grid that takes more than 8 bits."""
    if isinstance(grid, IntegerGrid):
        return grid.bits
    for bits in WIDTHS_OF_FLOATS:
        if largest_code(grid) < 2 ** (bits - 1):
            return bits
    raise InputError(
        f"its weight is on {grid_name(grid)}, which the format has no type for, and which takes more than 8 bits as "
        "integers; take a recipe of integers, or of 4-bit floats"
    )


def _weight_arguments(scheme: LinearScheme) -> dict[str, Any]:
    grid, granularity = scheme.weights.grid, scheme.weights.granularity
    arguments = {"num_bits": weight_bits(grid), "type": "int", "symmetric": not is_asymmetric(grid), "dynamic": False}
    rows, columns, size = scheme.out_features, scheme.in_features, granularity.group_size
    if granularity.kind == "row_group":
        if columns % (size or 1):
            raise InputError(f"its {columns} inputs are not whole groups of {size}, as the format wants them")
        return {**arguments, "strategy": "group", "group_size": size}
    if granularity.kind in ("column", "column_group"):
        return {**arguments, "strategy": "block", "block_structure": [size or rows, 1]}
    if granularity.kind == "row" and is_asymmetric(grid):
        # A group that is a whole row, because such a group can be made a block.
        return {**arguments, "strategy": "group", "group_size": columns}
    return {**arguments, "strategy": "tensor" if granularity.kind == "tensor" else "channel"}


def _input_arguments(inputs: InputScheme, channels: int, dimensions: int) -> dict[str, Any]:
    grid = inputs.grid
    if isinstance(grid, FloatGrid):
        raise InputError(
            f"its input is on {grid_name(grid)} with one scale, which the format has no type for; "
            "take a recipe with integer inputs, or one for weights alone"
        )
    arguments = {"num_bits": grid.bits, "type": "int", "symmetric": not is_asymmetric(grid)}
    if inputs.kind == "static":
        return {**arguments, "strategy": "tensor", "dynamic": False}
    if dimensions == 3:
        return {**arguments, "strategy": "token", "dynamic": True}
    # The library takes [tokens, channels] for one token; one group of all channels is a token whatever the shape.
    return {**arguments, "strategy": "group", "group_size": channels, "dynamic": True}
