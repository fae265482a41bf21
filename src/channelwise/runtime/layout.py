"""Which tensors a quantized layer consists of: names, shapes and dtypes, as a checkpoint holds them."""

import torch

from channelwise.numerics.granularity import parameter_shape
from channelwise.numerics.grids import FloatGrid
from channelwise.numerics.quantizer import Parameters, scale_dtype
from channelwise.runtime.packing import pack, packed_columns, unpack
from channelwise.runtime.scheme import LinearScheme, WeightScheme, is_asymmetric

Layout = tuple[tuple[int, ...], torch.dtype]
"""Shape and dtype of one tensor."""


PACKED_AT_ONCE = 2**22
"""Codes."""


def buffer_layout(scheme: LinearScheme) -> dict[str, Layout | None]:
    """The layer's buffers in their order; None for those that the scheme does without."""
    rows, columns = scheme.out_features, scheme.in_features
    static = scheme.inputs if scheme.inputs is not None and scheme.inputs.kind == "static" else None
    channels: Layout = ((columns,), torch.float32)
    single: Layout = ((), torch.float32)
    return {
        **weight_layout((rows, columns), scheme.weights),
        "bias": ((rows,), torch.float32) if scheme.bias else None,
        "input_shift": channels if scheme.shift else None,
        "input_scale": channels if scheme.scale else None,
        "input_step": single if static else None,
        "input_zero_point": single if static and is_asymmetric(static.grid) else None,
        "input_exponent": ((columns,), torch.uint8) if scheme.exponents else None,
    }


def weight_layout(shape: tuple[int, int], weights: WeightScheme) -> dict[str, Layout | None]:
    """The buffers of a quantized matrix of `shape`."""
    rows, columns = shape
    parameters = parameter_shape(shape, weights.granularity)
    zero_points = (parameters[0], packed_columns(parameters[1], weights.grid.bits))
    return {
        "weight_packed": ((rows, packed_columns(columns, weights.grid.bits)), torch.uint8),
        "weight_scale": (parameters, scale_dtype(weights.granularity)),
        "weight_zero_point": (zero_points, torch.uint8) if is_asymmetric(weights.grid) else None,
    }


def weight_parts(codes: torch.Tensor, parameters: Parameters, weights: WeightScheme) -> dict[str, torch.Tensor | None]:
    """What the buffers of `weight_layout` hold: codes and zero points packed at the grid's width."""
    zero_point = parameters.zero_point
    # Packing takes several times the memory of the codes.
    step = max(1, PACKED_AT_ONCE // max(1, codes.shape[1]))
    return {
        "weight_packed": torch.cat([pack(part - weights.grid.lowest, weights.grid.bits) for part in codes.split(step)]),
        "weight_scale": parameters.scale,
        "weight_zero_point": None if zero_point is None else pack(zero_point.to(torch.int16), weights.grid.bits),
    }


def weight_parameters(scale: torch.Tensor, zero_point: torch.Tensor | None, weights: WeightScheme) -> Parameters:
    """The parameters that the buffers `weight_scale` and `weight_zero_point`, or some of their rows, stand for."""
    if zero_point is None:
        return Parameters(scale.float())
    return Parameters(scale.float(), unpack(zero_point, weights.grid.bits, scale.shape[1]).float())


def fitted(name: str, part: torch.Tensor | None, layout: Layout | None, device: torch.device) -> torch.Tensor | None:
    """A copy of the part in the dtype and shape of its buffer, on `device`.

    Raises ValueError where a part is missing, superfluous or has another number of entries.
    """
    if (part is None) != (layout is None):
        raise ValueError(f"{name} is {'missing' if part is None else 'given'}, the scheme says otherwise")
    if part is None or layout is None:
        return None
    shape, dtype = layout
    exact = name not in ("input_step", "input_zero_point")
    if part.numel() != torch.Size(shape).numel() or (exact and part.shape != shape):
        raise ValueError(f"{name} has shape {list(part.shape)}, the scheme says {list(shape)}")
    return part.detach().to(device=device, dtype=dtype, copy=True).reshape(shape).contiguous()


def checked_exponents(exponents: torch.Tensor | None, scheme: LinearScheme) -> torch.Tensor | None:
    """The exponents, if there are any. Raises ValueError for one below 0 or above what the input grid allows."""
    grid = None if scheme.inputs is None else scheme.inputs.grid
    largest = 2**grid.exponent_bits - 1 if isinstance(grid, FloatGrid) else torch.iinfo(torch.uint8).max
    if exponents is not None and not bool(((exponents >= 0) & (exponents <= largest)).all()):
        raise ValueError(f"input_exponent is outside 0 … {largest}")
    return exponents
