"""A weight's rows divided over ranks: each rounds its own, and all have the whole in the end.

Rows are rounded independently of each other, given the Hessian, unless they share a scale. So every linear layer keeps
all ranks busy, whereas whole layers would leave most of them idle: at most levels of a block there are one or two.
"""

from dataclasses import dataclass

import torch

from channelwise.engine.world import World
from channelwise.numerics.granularity import Granularity
from channelwise.numerics.quantizer import Parameters

DIVISIBLE = ("row", "row_group", "column_group")
"""Granularities whose scales belong to one row, or to a few neighbouring ones."""


@dataclass(frozen=True)
class RowShare:
    """This rank's rows of a weight [rows, columns]. whole: whether they are all of it, because it is not divided."""

    world: World
    rows: slice
    granularity: Granularity
    whole: bool

    @classmethod
    def of(cls, world: World, count: int, granularity: Granularity) -> "RowShare":
        """This rank's share of `count` rows, cut where groups end; all of them where there are not enough to divide."""
        size = _rows_of_a_scale(granularity)
        if world.size == 1 or granularity.kind not in DIVISIBLE or count < 2 * world.size * size:
            return cls(world, slice(0, count), granularity, whole=True)
        return cls(world, world.rows(count, size), granularity, whole=False)

    def of_weight(self, weight: torch.Tensor) -> torch.Tensor:
        """The rows of the weight, a view."""
        return weight if self.whole else weight[self.rows]

    def of_parameters(self, parameters: Parameters | None) -> Parameters | None:
        """The rows' part of the whole weight's parameters."""
        if self.whole or parameters is None:
            return parameters
        size = _rows_of_a_scale(self.granularity)
        part = slice(self.rows.start // size, -(-self.rows.stop // size))
        zero_point = None if parameters.zero_point is None else parameters.zero_point[part]
        return Parameters(parameters.scale[part], zero_point)

    def joined_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """All ranks' rows, of any dtype, from each one's own."""
        return rows if self.whole else self.world.joined(rows)

    def joined_parameters(self, parameters: Parameters) -> Parameters:
        """The parameters of all ranks' rows."""
        if self.whole:
            return parameters
        zero_point = None if parameters.zero_point is None else self.world.joined(parameters.zero_point)
        return Parameters(self.world.joined(parameters.scale), zero_point)

    def total(self, error: float) -> float:
        """The sum over ranks of what each found for its rows."""
        return error if self.whole else self.world.totals([error])[0]


def _rows_of_a_scale(granularity: Granularity) -> int:
    return (granularity.group_size or 1) if granularity.kind == "column_group" else 1
