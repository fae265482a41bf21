"""The triangular factorization H = V D Vᵀ of a large symmetric matrix in little memory.

The factors of a Hessian of 11008 channels in float64, and the copies that a library call makes, are more than 3 GB. One
triangle in float64 takes no more bytes than the whole matrix in float32: so the work is done in panels of that
triangle, in the memory of the result, which takes their place from its first rows on.
"""

import torch

PANEL = 512
"""Rows that are factored together: so many that nearly all of the work is products of large matrices."""


def unit_upper_factor(matrix: torch.Tensor, order: torch.Tensor, diagonal: torch.Tensor) -> torch.Tensor | None:
    """V of H = V D Vᵀ, float32 [n, n], upper triangular with a diagonal of ones; None if H is not positive definite.

    H is matrix[order][:, order] with `diagonal`, float64 [n], in the place of its own. Where the diagonal of `matrix`
    is not positive, the entry stands alone: the rest of its row and column counts as 0. Computed in float64; `matrix`
    is left alone, and memory is that of the result and of some panels.
    """
    # Cholesky's lower factor L of the reversed matrix, reversed again, is an upper factor: H = (J L J)(J L J)ᵀ.
    buffer, panels = _panels(len(order), matrix.device)
    failed = _factorize(panels, matrix, order.flip(0), diagonal.flip(0))
    pivots = torch.cat([_square(panel).diagonal() for panel in panels])
    result = _unit_upper(buffer, panels, pivots)
    # One look at the device for all panels.
    return None if bool(failed | ~torch.isfinite(torch.stack(torch.aminmax(result))).all()) else result


def _panels(size: int, device: torch.device) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A buffer and, as float64 views of it, the panels of a lower triangle: rows up to the last of their own columns.

    The last panel comes first in memory, so that it and those down to the one that begins with row s can turn into rows
    of the result at the buffer's start: these are (n − s) n numbers of four bytes, and the panels hold more than
    (n² − s²) / 2 of eight, which is (n + s) / n times as much.
    """
    stops = [min(start + PANEL, size) for start in range(0, size, PANEL)]
    shapes = [(stop - start, stop) for start, stop in zip([0, *stops], stops, strict=False)]
    counts = [rows * columns for rows, columns in shapes]
    buffer = torch.empty(sum(counts), dtype=torch.float64, device=device)
    views = buffer.split(counts[::-1])[::-1]
    return buffer, [view.view(shape) for view, shape in zip(views, shapes, strict=True)]


def _factorize(
    panels: list[torch.Tensor], matrix: torch.Tensor, order: torch.Tensor, diagonal: torch.Tensor
) -> torch.Tensor:
    """Fills the panels with Cholesky's lower factor of matrix[order][:, order]; gives a bool [], whether that failed.

    A panel that failed does not stop those after it, so that nothing is read back from the device.
    """
    alive = matrix.diagonal()[order] > 0
    failures = []
    for index, panel in enumerate(panels):
        rows, stop = panel.shape
        start = stop - rows
        panel.copy_(matrix[order[start:stop]].index_select(1, order[:stop]))
        panel.masked_fill_(~(alive[start:stop, None] & alive[:stop]), 0.0)
        square = _square(panel)
        square.diagonal().copy_(diagonal[start:stop])
        for above in panels[:index]:
            width, end = above.shape
            part = panel[:, end - width : end]
            part.addmm_(panel[:, : end - width], above[:, : end - width].t(), alpha=-1)
            part.copy_(torch.linalg.solve_triangular(_square(above).t(), part, upper=True, left=False))
        square.addmm_(panel[:, :start], panel[:, :start].t(), alpha=-1)
        lower, failed = torch.linalg.cholesky_ex(square)
        square.copy_(lower)
        failures.append(failed)
    return torch.stack(failures).any()


def _unit_upper(buffer: torch.Tensor, panels: list[torch.Tensor], pivots: torch.Tensor) -> torch.Tensor:
    """The panels' factor with columns divided by their pivots and reversed, float32, in the memory of the buffer."""
    size = len(pivots)
    result = buffer.view(torch.float32)[: size * size].view(size, size)
    filled = 0
    for panel in reversed(panels):
        reverse = panel.div_(pivots[: panel.shape[1]]).flip(0, 1)
        rows = result[filled : filled + len(panel)]
        rows[:, :filled] = 0.0
        rows[:, filled:] = reverse
        filled += len(panel)
    return result


def _square(panel: torch.Tensor) -> torch.Tensor:
    """The part of a panel on the diagonal."""
    rows, columns = panel.shape
    return panel[:, columns - rows :]
