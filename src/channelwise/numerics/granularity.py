"""Granularities: which entries of a matrix share one scale.

Matrices are [rows, columns]: activations are [tokens, channels], weights [out_features, in_features].
So "row" is a token or an output channel, "column" an input channel; a group along a row is the
per-OC direction of weight groups, a group along a column the per-IC direction (AdaDim, arXiv 2309.15531).
"""

from dataclasses import dataclass
from typing import Literal

import torch

Kind = Literal["tensor", "row", "column", "row_group", "column_group"]


@dataclass(frozen=True)
class Granularity:
    """One scale per tensor, row, column, or group of `group_size` entries along a row or a column.

    A last group that is not full is allowed. Raises ValueError if a group size is missing, or given where none belongs.
    """

    kind: Kind
    group_size: int | None = None

    def __post_init__(self) -> None:
        grouped = self.kind in ("row_group", "column_group")
        if grouped and (self.group_size is None or self.group_size < 1):
            raise ValueError(f"granularity {self.kind} needs a group size of at least 1")
        if not grouped and self.group_size is not None:
            raise ValueError(f"granularity {self.kind} takes no group size")


TENSOR = Granularity("tensor")
ROW = Granularity("row")
COLUMN = Granularity("column")


def parameter_shape(shape: tuple[int, int], granularity: Granularity) -> tuple[int, int]:
    """The shape of the scales of a matrix of `shape`: always two-dimensional."""
    rows, columns = shape
    size = granularity.group_size or 1
    return {
        "tensor": (1, 1),
        "row": (rows, 1),
        "column": (1, columns),
        "row_group": (rows, -(-columns // size)),
        "column_group": (-(-rows // size), columns),
    }[granularity.kind]


def expand(parameters: torch.Tensor, shape: tuple[int, int], granularity: Granularity) -> torch.Tensor:
    """Scales of `parameter_shape` as a view or copy that broadcasts against the matrix of `shape`."""
    rows, columns = shape
    if granularity.kind == "row_group":
        return parameters.repeat_interleave(granularity.group_size or 1, dim=1)[:, :columns]
    if granularity.kind == "column_group":
        return parameters.repeat_interleave(granularity.group_size or 1, dim=0)[:rows]
    return parameters


def row_slices(rows: int, granularity: Granularity, size: int) -> list[slice]:
    """Consecutive parts of a matrix's rows that cut no group apart: about `size` rows each, one group at least.

    What a tensor or a column shares is shared by all parts. Every part but the last has the same number of rows.
    """
    group = (granularity.group_size or 1) if granularity.kind == "column_group" else 1
    step = max(group, size // group * group)
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def of_rows(parameters: torch.Tensor, rows: slice, granularity: Granularity) -> torch.Tensor:
    """The scales of some rows, a view: `parameters` of the whole matrix, `rows` as `row_slices` gives them."""
    if granularity.kind in ("tensor", "column"):
        return parameters
    if granularity.kind == "column_group":
        size = granularity.group_size or 1
        return parameters[rows.start // size : -(-rows.stop // size)]
    return parameters[rows]


def value_range(x: torch.Tensor, granularity: Granularity) -> tuple[torch.Tensor, torch.Tensor]:
    """Minimum and maximum of the entries that share a scale.

    x: [rows, columns], any float dtype. Returns two float32 tensors of `parameter_shape`.
    """
    x = x.float()
    if granularity.kind == "tensor":
        low, high = torch.aminmax(x)
        return low.view(1, 1), high.view(1, 1)
    if granularity.kind == "row":
        low, high = torch.aminmax(x, dim=1, keepdim=True)
        return low, high
    if granularity.kind == "column":
        low, high = torch.aminmax(x, dim=0, keepdim=True)
        return low, high
    return _group_range(x, granularity.group_size or 1, dim=0 if granularity.kind == "column_group" else 1)


def _group_range(x: torch.Tensor, size: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Minimum and maximum of each group of `size` entries along a dimension, the last of which may not be full."""
    length = x.shape[dim]
    full = length // size * size
    ranges = []
    if full:
        ranges.append(torch.aminmax(x.narrow(dim, 0, full).unflatten(dim, (full // size, size)), dim=dim + 1))
    if full < length:
        ranges.append(torch.aminmax(x.narrow(dim, full, length - full), dim=dim, keepdim=True))
    if len(ranges) == 1:
        low, high = ranges[0]
        return low, high
    return torch.cat([low for low, _ in ranges], dim=dim), torch.cat([high for _, high in ranges], dim=dim)
