"""Our layers with random codes: the schemes that are measured, and `random_layer`."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace

import torch

from channelwise.numerics.granularity import ROW, Granularity
from channelwise.numerics.grids import FloatGrid, Grid, IntegerGrid
from channelwise.runtime.cpu.panels import empty_panels
from channelwise.runtime.linear import QuantizedLinear
from channelwise.runtime.packed import PackedStatic, PackedToken, WeightOnly
from channelwise.runtime.packing import pack
from channelwise.runtime.scheme import InputScheme, LinearScheme, WeightScheme, is_asymmetric

GROUP = 128
TILE_ROWS = 64
"""Rows of random codes, repeated: what the codes are does not change how long they take."""

LARGEST_EXPONENT = 3
"""Of E2M1, the pre-shifted exponent bias goes up to 2^2 − 1."""

INT8, INT6, E2M1 = IntegerGrid(8), IntegerGrid(6), FloatGrid(2, 1)
PER_OC, PER_IC = Granularity("row_group", GROUP), Granularity("column_group", GROUP)


@dataclass(frozen=True)
class Scheme:
    """A `LinearScheme` but for the sizes."""

    weights: WeightScheme
    inputs: InputScheme | None = None
    shift: bool = False
    scale: bool = False
    exponents: bool = False

    def sized(self, out_features: int, in_features: int) -> LinearScheme:
        """The scheme of a layer of these sizes; a shift makes a bias."""
        return LinearScheme(
            in_features,
            out_features,
            self.weights,
            self.inputs,
            bias=self.shift,
            shift=self.shift,
            scale=self.scale,
            exponents=self.exponents,
        )


def _integer(bits: int, inputs: InputScheme) -> Scheme:
    return Scheme(WeightScheme(IntegerGrid(bits), ROW), inputs)


def _grouped(grid: Grid, direction: Granularity) -> Scheme:
    return Scheme(WeightScheme(grid, direction))


STATIC8, TOKEN8 = InputScheme(INT8, "static"), InputScheme(INT8, "token")
FP4 = WeightScheme(E2M1, ROW)

SCHEMES: dict[str, Scheme] = {
    "w8a8-static": _integer(8, STATIC8),
    "w8a8-token": _integer(8, TOKEN8),
    "w6a6-static": _integer(6, InputScheme(INT6, "static")),
    "w4a8-static": _integer(4, STATIC8),
    "w4a4-fp4": Scheme(FP4, InputScheme(E2M1, "static")),
    "w4a4-fp4-exponents": Scheme(FP4, InputScheme(E2M1, "static"), exponents=True),
    **{f"w{bits}-oc": _grouped(IntegerGrid(bits, symmetric=False), PER_OC) for bits in (8, 6, 4, 3, 2)},
    **{f"w{bits}-ic": _grouped(IntegerGrid(bits, symmetric=False), PER_IC) for bits in (8, 6, 4, 3, 2)},
    "fp4": Scheme(FP4),
}
"""Inputs of one step, or a step per token; weights only with zero points in groups of 128 per output or input channel;
E2M1 with a scale per output channel, with inputs in E2M1 (with an exponent per channel) or in floating point."""


@torch.no_grad()
def random_layer(scheme: Scheme, out_features: int, in_features: int) -> QuantizedLinear:
    """A layer with random codes, scales that keep outputs of the size of inputs, packed for the kernels."""
    layer = QuantizedLinear(scheme.sized(out_features, in_features))
    weights, inputs = scheme.weights, scheme.inputs
    count = weights.grid.highest - weights.grid.lowest + 1
    tile = pack(torch.randint(0, count, (TILE_ROWS, in_features), dtype=torch.int16), weights.grid.bits)
    layer.weight_packed.copy_(tile.repeat(-(-out_features // TILE_ROWS), 1)[:out_features])
    spread = _largest(weights.grid) / 2 * in_features**0.5
    layer.weight_scale.copy_((0.5 + torch.rand(layer.weight_scale.shape)) / spread)
    if layer.weight_zero_point is not None:
        # Half the range: a zero point of 2^(bits − 1) everywhere, packed like the codes.
        rows, columns = layer.weight_scale.shape
        middle = torch.full((rows, columns), 2 ** (weights.grid.bits - 1), dtype=torch.int16)
        layer.weight_zero_point.copy_(pack(middle, weights.grid.bits))
    if layer.bias is not None:
        layer.bias.normal_()
    if layer.input_shift is not None:
        layer.input_shift.normal_(std=0.1)
    if layer.input_scale is not None:
        layer.input_scale.uniform_(0.5, 1.5)
    if inputs is not None and layer.input_step is not None:
        layer.input_step.fill_(4.0 / _largest(inputs.grid))
        if layer.input_zero_point is not None and is_asymmetric(inputs.grid):
            layer.input_zero_point.fill_(2 ** (inputs.grid.bits - 1))
    if layer.input_exponent is not None:
        layer.input_exponent.copy_(torch.randint(0, LARGEST_EXPONENT + 1, (in_features,)))
    layer.keep_packed()
    return layer


def twin(layer: QuantizedLinear) -> QuantizedLinear:
    """A layer with a copy of the panels at another place in memory; quicker to make than a layer.

    What is small, vectors of a number per channel, both share.
    """
    execution = layer._execution()
    if not isinstance(execution, WeightOnly | PackedStatic | PackedToken):
        raise NotImplementedError("the layer has no panels: are the kernels built?")
    parts = {each.name: getattr(execution.panels, each.name) for each in fields(execution.panels) if each.init}
    copies = {name: part.clone() for name, part in parts.items() if isinstance(part, torch.Tensor)}
    copies["data"] = empty_panels(len(parts["data"])).copy_(parts["data"])
    other = QuantizedLinear(layer.scheme, device="meta")
    other._buffers.update(layer._buffers)
    panels = replace(execution.panels, **copies)
    other._prepared = (tuple(other._buffers.values()), replace(execution, panels=panels))
    return other


def held_bytes(layer: QuantizedLinear) -> int:
    """Bytes in memory of the layer's tensors and of what its first call prepared from them, each counted once."""
    found = {tensor.data_ptr(): tensor for tensor in _tensors(layer._execution())}
    found |= {tensor.data_ptr(): tensor for tensor in layer.buffers()}
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


def _largest(grid: Grid) -> float:
    return grid.largest_value if isinstance(grid, FloatGrid) else float(grid.highest)


def _tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))
