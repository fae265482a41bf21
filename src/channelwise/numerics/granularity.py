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
    if granularity.kind == "column_group":
        low, high = value_range(x.t(), Granularity("row_group", granularity.group_size))
        return low.t().contiguous(), high.t().contiguous()
    return _row_group_range(x, granularity.group_size or 1)


def _row_group_range(x: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows, columns = x.shape
    missing = -columns % size
    if missing:
        # Repeating the last entry pads the last group without widening its range.
        x = torch.cat([x, x[:, -1:].expand(rows, missing)], dim=1)
    low, high = torch.aminmax(x.reshape(rows, -1, size), dim=2)
    return low, high
