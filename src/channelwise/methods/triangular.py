"""The triangular factorization H = V D Vᵀ of a large symmetric matrix, in the memory of the matrix itself.

A symmetric matrix needs one of its triangles, and a triangular factor with a diagonal of ones no more than the other:
so the factor is written below the diagonal of the matrix, which is kept above it. Panels of columns are computed in
float64 and rounded once to float32. That changes an entry of V D Vᵀ by at most 2^-23 of √(H_ii H_jj), which is no more
than summing H over tokens in float32 did.
"""

from dataclasses import dataclass
from typing import Protocol

import torch

PANEL = 512
"""Columns that are factored together: so many that nearly all of the work is products of large matrices."""

ROWS = 1024
"""Rows of a panel that are in float64 at a time."""


class Ranks(Protocol):
    """Processes that divide the rows of a panel among them; all of them make the same calls in the same order."""

    def rows(self, count: int, multiple: int = 1) -> slice:
        """This process's share of so many rows."""

    def joined(self, tensor: torch.Tensor) -> torch.Tensor:
        """The rows of all processes one behind the other."""

    def maximum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The largest that any process has, element by element."""


@dataclass(frozen=True)
class OneRank:
    """A process that shares its work with no other."""

    def rows(self, count: int, multiple: int = 1) -> slice:
        """All of them."""
        return slice(0, count)

    def joined(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor itself."""
        return tensor

    def maximum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor itself."""
        return tensor


ALONE = OneRank()


def factor_below(
    matrix: torch.Tensor, order: torch.Tensor, diagonal: torch.Tensor, ranks: Ranks = ALONE
) -> torch.Tensor | None:
    """Writes V of H = V D Vᵀ below the diagonal of `matrix`, float32 [n, n]; gives D, float64 [n].

    What `matrix` has on and above its diagonal is only read. It stands for H before the channels are put into `order`,
    int64 [n], and get `diagonal`, float64 [n] in that order, in the place of their own. Where the diagonal of `matrix`
    is not positive, the channel stands alone: the rest of its row and column counts as 0.

    V is upper triangular with a diagonal of ones; V_ij is written to [n − 1 − i, n − 1 − j]. If H is not positive
    definite, the result is None and what is written has no meaning; another call with a larger diagonal may follow.
    """
    # Cholesky's lower factor L of the reversed matrix, reversed again, is an upper factor: H = (J L J)(J L J)ᵀ.
    source = _Reversed(matrix, order.flip(0), diagonal.flip(0), matrix.diagonal() > 0)
    size = len(order)
    pivots = torch.empty_like(source.diagonal)
    failures = []
    for start in range(0, size, PANEL):
        stop = min(start + PANEL, size)
        # L without D on the left, with D on the right: rows of the two give H by their products.
        scaled = matrix[start:stop, :start].double().mul_(pivots[:start])
        square = source.entries(start, stop, start, stop)
        square.addmm_(matrix[start:stop, :start].double(), scaled.t(), alpha=-1)
        lower, failed = torch.linalg.cholesky_ex(square)
        pivots[start:stop] = lower.diagonal().square()
        unit = lower / lower.diagonal()
        own = matrix[start:stop, start:stop]
        own.copy_(torch.where(torch.ones_like(own, dtype=torch.bool).tril(-1), unit.float(), own))
        failures += [failed != 0, ~torch.isfinite(unit).all()]
        if stop < size:
            share = ranks.rows(size - stop)
            below = _below(source, scaled, unit, pivots[start:stop], (stop + share.start, stop + share.stop))
            matrix[stop:, start:stop] = ranks.joined(below)
            failures.append(~torch.isfinite(torch.stack(torch.aminmax(matrix[stop:, start:stop]))).all())
    # One look at the device for all panels; and processors that round differently have to agree.
    failed = bool(ranks.maximum(torch.stack(failures).any().to(torch.uint8)))
    return None if failed else pivots.flip(0)


@dataclass(frozen=True)
class _Reversed:
    """A symmetric matrix [n, n] that is read above its diagonal, in another order and with another diagonal."""

    matrix: torch.Tensor
    order: torch.Tensor
    diagonal: torch.Tensor
    alive: torch.Tensor

    def entries(self, start: int, stop: int, first: int, last: int) -> torch.Tensor:
        """Those of rows start to stop and columns first to last, float64."""
        rows, columns = self.order[start:stop, None], self.order[None, first:last]
        found = self.matrix[torch.minimum(rows, columns), torch.maximum(rows, columns)]
        found.masked_fill_(~(self.alive[rows] & self.alive[columns]), 0.0)
        found = found.double()
        if (start, stop) == (first, last):
            found.diagonal().copy_(self.diagonal[start:stop])
        return found


def _below(
    source: _Reversed, scaled: torch.Tensor, unit: torch.Tensor, pivots: torch.Tensor, rows: tuple[int, int]
) -> torch.Tensor:
    """Some rows of a panel below its square, float32 [rows, width], for the square's own `unit` factor and D."""
    width, done = scaled.shape
    below = torch.empty(rows[1] - rows[0], width, device=unit.device)
    for start in range(*rows, ROWS):
        stop = min(start + ROWS, rows[1])
        part = source.entries(start, stop, done, done + width)
        part.addmm_(source.matrix[start:stop, :done].double(), scaled.t(), alpha=-1)
        part = torch.linalg.solve_triangular(unit.t(), part, upper=True, left=False, unitriangular=True)
        below[start - rows[0] : stop - rows[0]] = part.div_(pivots)
    return below
