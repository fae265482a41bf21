"""Which tensors a quantized linear layer consists of: names, shapes and dtypes, as a checkpoint holds them."""

import torch

from channelwise.numerics.granularity import parameter_shape
from channelwise.numerics.grids import IntegerGrid
from channelwise.runtime.packing import packed_columns
from channelwise.runtime.scheme import LinearScheme

Layout = tuple[tuple[int, ...], torch.dtype]
"""Shape and dtype of one tensor."""


def buffer_layout(scheme: LinearScheme) -> dict[str, Layout | None]:
    """The layer's buffers in their order; None for those that the scheme does without."""
    rows, columns = scheme.out_features, scheme.in_features
    grid = scheme.weights.grid
    parameters = parameter_shape((rows, columns), scheme.weights.granularity)
    asymmetric = isinstance(grid, IntegerGrid) and not grid.symmetric
    static = scheme.inputs is not None and scheme.inputs.kind == "static"
    channels: Layout = ((columns,), torch.float32)
    single: Layout = ((), torch.float32)
    return {
        "weight_packed": ((rows, packed_columns(columns, grid.bits)), torch.uint8),
        "weight_scale": (parameters, torch.float32),
        "weight_zero_point": (parameters, torch.uint8) if asymmetric else None,
        "bias": ((rows,), torch.float32) if scheme.bias else None,
        "input_shift": channels if scheme.shift else None,
        "input_scale": channels if scheme.scale else None,
        "input_step": single if static else None,
        "input_zero_point": single if static and scheme.inputs and not scheme.inputs.grid.symmetric else None,
    }


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
