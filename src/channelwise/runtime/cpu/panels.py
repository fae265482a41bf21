"""How wide weights lie in panels of 16 output channels, for both kinds of product (`source/panels.hpp`)."""

import torch

from channelwise.runtime.cpu.library import INT64, POINTER, kernels

PANEL_OUTPUTS = 16

UNIT_COLUMNS = {8: 4, 6: 16, 4: 8, 3: 32, 2: 16}
"""Columns that panels of a width hold together; inputs are padded to a multiple."""

UNIT_BYTES = {8: 64, 6: 192, 4: 64, 3: 192, 2: 64}

CONTAINERS = {8: 8, 7: 8, 6: 6, 5: 6, 4: 4, 3: 3, 2: 2}
"""The width of the panels that codes of a width are kept in."""


def padded_columns(bits: int, columns: int) -> int:
    """Columns of input codes for panels of `bits` and so many columns; codes beyond are zeros.

    Raises ValueError for a width that panels do not have.
    """
    if bits not in UNIT_COLUMNS:
        raise ValueError(f"{bits} bits: panels have 8, 6, 4, 3 or 2")
    return -(-columns // UNIT_COLUMNS[bits]) * UNIT_COLUMNS[bits]


def panel_bytes(bits: int, rows: int, columns: int) -> int:
    """How much memory the panels of a weight [rows, columns] take."""
    panels = -(-rows // PANEL_OUTPUTS)
    return panels * (padded_columns(bits, columns) // UNIT_COLUMNS[bits]) * UNIT_BYTES[bits]


def empty_panels(size: int) -> torch.Tensor:
    """Memory for `size` bytes of panels, uint8 [size], in large pages where the system has them."""
    data = torch.empty(size, dtype=torch.uint8)
    prefer = kernels().channelwise_prefer_large_pages
    prefer.argtypes, prefer.restype = [POINTER, INT64], None
    prefer(data.data_ptr(), size)
    return data


def check_tensor(name: str, tensor: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Raises ValueError for what a kernel cannot read: another dtype, shape, layout or device."""
    if tensor.dtype != dtype or tensor.shape != shape or not tensor.is_contiguous() or not tensor.is_cpu:
        raise ValueError(
            f"{name} is {tensor.dtype} {list(tensor.shape)}, needed is contiguous {dtype} {list(shape)} on the CPU"
        )
