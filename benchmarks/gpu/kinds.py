"""Our layers with random contents: the kinds that are measured, and `random_layer`."""

from dataclasses import dataclass

import torch

from channelwise.numerics.granularity import ROW, TENSOR, Granularity
from channelwise.numerics.grids import FloatGrid, Grid, IntegerGrid
from channelwise.runtime.linear import QuantizedLinear
from channelwise.runtime.packing import pack
from channelwise.runtime.scheme import InputScheme, LinearScheme, WeightScheme, is_asymmetric

GROUP = 128
CODES_AT_ONCE = 2**24
"""Codes that are drawn and packed together."""

LARGEST_EXPONENT = 3
"""Of E2M1, the pre-shifted exponent bias goes up to 2^2 − 1."""

INPUT_RANGE = 4.0
"""Inputs are normal; static steps cover ± so much."""

INT8, INT6, INT4, E2M1 = IntegerGrid(8), IntegerGrid(6), IntegerGrid(4), FloatGrid(2, 1)
PER_OC, PER_IC = Granularity("row_group", GROUP), Granularity("column_group", GROUP)


@dataclass(frozen=True)
class Kind:
    """A `LinearScheme` but for the sizes."""

    weights: WeightScheme
    inputs: InputScheme | None = None
    shift: bool = False
    scale: bool = False
    exponents: bool = False

    def sized(self, outputs: int, columns: int) -> LinearScheme:
        """The scheme of a layer of these sizes; a shift makes a bias."""
        return LinearScheme(
            columns,
            outputs,
            self.weights,
            self.inputs,
            bias=self.shift,
            shift=self.shift,
            scale=self.scale,
            exponents=self.exponents,
        )


def _static(grid: Grid) -> InputScheme:
    return InputScheme(grid, "static")


def _weights_only(bits: int, direction: Granularity) -> Kind:
    return Kind(WeightScheme(IntegerGrid(bits, symmetric=False), direction))


W8 = WeightScheme(INT8, ROW)

QUANTIZED_INPUTS: dict[str, Kind] = {
    "w8a8-channel": Kind(W8, _static(INT8), shift=True, scale=True),
    "w8a8-tensor": Kind(WeightScheme(INT8, TENSOR), _static(INT8)),
    "w8a8-token": Kind(W8, InputScheme(INT8, "token")),
    "w6a6": Kind(WeightScheme(INT6, ROW), _static(INT6), shift=True, scale=True),
    "w4a8": Kind(WeightScheme(INT4, ROW), _static(INT8), shift=True, scale=True),
    "w4a4-fp4": Kind(WeightScheme(E2M1, ROW), _static(E2M1), exponents=True),
}
"""channel: a shift and a scale per input channel, a step for all; tensor: one step, and one scale for the weight;
token: a step per token, found at run time. w6a6 and w4a8 as channel; w4a4-fp4: E2M1 with an exponent per channel."""

WEIGHTS_ONLY: dict[str, Kind] = {
    "w4-oc": _weights_only(4, PER_OC),
    "w4-ic": _weights_only(4, PER_IC),
    "w3-oc": _weights_only(3, PER_OC),
    "w3-ic": _weights_only(3, PER_IC),
}
"""Zero points, in groups of 128 along a row (per output channel) or down a column (per input channel)."""

INNER = Kind(W8, _static(INT8), scale=True)
"""What W8A8 recipes leave at the inputs of o and down: no shift."""

KINDS = QUANTIZED_INPUTS | WEIGHTS_ONLY


@torch.no_grad()
def random_layer(kind: Kind, outputs: int, columns: int, device: str) -> QuantizedLinear:
    """A layer with random codes on a device, its outputs about as large as its inputs.

    The vectors per input channel depend on their number only: layers that read one input quantize it alike.
    """
    layer = QuantizedLinear(kind.sized(outputs, columns), device=device)
    grid = kind.weights.grid
    layer.weight_packed.copy_(_random_codes(grid, outputs, columns, device))
    spread = _largest(grid) / 2 * columns**0.5
    layer.weight_scale.copy_((0.5 + torch.rand(layer.weight_scale.shape, device=device)) / spread)
    if layer.weight_zero_point is not None:
        layer.weight_zero_point.copy_(_random_zero_points(grid, layer.weight_scale.shape, device))
    if layer.bias is not None:
        layer.bias.normal_()
    _fill_input_vectors(layer, torch.Generator(device).manual_seed(columns))
    _fill_steps(layer, kind)
    return layer


def _random_codes(grid: Grid, outputs: int, columns: int, device: str) -> torch.Tensor:
    """Packed codes, as stored from 0 up; every code the grid has is equally likely."""
    count, rows = grid.highest - grid.lowest + 1, max(1, CODES_AT_ONCE // columns)
    sizes = [min(rows, outputs - start) for start in range(0, outputs, rows)]
    drawn = (torch.randint(0, count, (size, columns), dtype=torch.uint8, device=device) for size in sizes)
    return torch.cat([pack(codes, grid.bits) for codes in drawn])


def _random_zero_points(grid: Grid, shape: torch.Size, device: str) -> torch.Tensor:
    """Near the middle of the range, packed like the codes."""
    middle = 2 ** (grid.bits - 1)
    return pack(torch.randint(middle - 1, middle + 2, tuple(shape), dtype=torch.uint8, device=device), grid.bits)


def _fill_input_vectors(layer: QuantizedLinear, generator: torch.Generator) -> None:
    if layer.input_shift is not None:
        layer.input_shift.normal_(std=0.1, generator=generator)
    if layer.input_scale is not None:
        layer.input_scale.uniform_(0.5, 1.5, generator=generator)
    if layer.input_exponent is not None:
        layer.input_exponent.random_(0, LARGEST_EXPONENT + 1, generator=generator)


def _fill_steps(layer: QuantizedLinear, kind: Kind) -> None:
    if kind.inputs is None or layer.input_step is None:
        return
    grid = kind.inputs.grid
    # Half of the largest exponent is where channels are in the middle.
    widened = 2 ** (LARGEST_EXPONENT / 2) if kind.exponents else 1.0
    layer.input_step.fill_(INPUT_RANGE * widened / _largest(grid))
    if layer.input_zero_point is not None:
        layer.input_zero_point.fill_(2 ** (grid.bits - 1))


def _largest(grid: Grid) -> float:
    """The largest distance from zero of what the grid represents, at scale 1."""
    if isinstance(grid, FloatGrid):
        return grid.largest_value
    return 2 ** (grid.bits - 1) if is_asymmetric(grid) else grid.highest
