"""Cut ranges: groups whose largest weights saturate where that changes the output less (AWQ, arXiv 2306.00978)."""

import torch

from channelwise.methods.hessian import row_errors
from channelwise.numerics.granularity import Granularity, row_slices, value_range
from channelwise.numerics.grids import Grid
from channelwise.numerics.quantizer import Parameters, fake_quantize, joined, parameters_from_range, scale_dtype

SHARES = tuple(1.0 - step / 20 for step in range(11))
"""Shares of a group's range that are tried: 1 down to a half."""

RANGE_STEPS = 5
"""How many shares are tried for a column in its turn."""

ERROR_POWER = 2.4

ROWS = 512
"""Rows of a weight that are searched at a time on a processor, where few keep memory low; elsewhere all are."""


def searched_parameters(
    weight: torch.Tensor, hessian: torch.Tensor, grid: Grid, granularity: Granularity
) -> Parameters:
    """Parameters of a weight float32 [rows, columns], each group's range cut to the share with the least output error.

    The error of a group is that of its entries alone, δ H δᵀ over its own columns of the Hessian [columns, columns];
    what groups do to each other is left out, as the range of each is searched on its own.
    """
    together = len(weight) if granularity.kind in ("tensor", "column") or weight.device.type != "cpu" else ROWS
    slices = row_slices(len(weight), granularity, together)
    return joined([_searched(weight[rows].float(), hessian, grid, granularity) for rows in slices], dim=0)


def _searched(weight: torch.Tensor, hessian: torch.Tensor, grid: Grid, granularity: Granularity) -> Parameters:
    """`searched_parameters` of some rows, none of whose groups goes on in other rows."""
    low, high = value_range(weight, granularity)
    dtype = scale_dtype(granularity)
    best = torch.full_like(low, torch.inf)
    chosen_low, chosen_high = low, high
    for share in SHARES:
        parameters = parameters_from_range(low * share, high * share, grid, dtype)
        change = fake_quantize(weight, parameters, grid, granularity).sub_(weight)
        errors = group_errors(change, hessian, granularity)
        better = errors < best
        best = torch.where(better, errors, best)
        chosen_low = torch.where(better, low * share, chosen_low)
        chosen_high = torch.where(better, high * share, chosen_high)
    return parameters_from_range(chosen_low, chosen_high, grid, dtype)


def least_error_parameters(x: torch.Tensor, grid: Grid, granularity: Granularity, smallest: float) -> Parameters:
    """Parameters of one column [rows, 1], each group's range cut to the share of it with the least Σ|error|^2.4.

    smallest: the least share that is tried. The exponent, between the squared and the largest error, is that of GPTQ's
    released code (arXiv 2210.17323).
    """
    low, high = value_range(x, granularity)
    shares = torch.linspace(1.0, smallest, RANGE_STEPS, device=x.device)
    # A candidate for each share, side by side as columns: what a column's groups do concerns no other column.
    tried = parameters_from_range(low * shares, high * shares, grid, scale_dtype(granularity))
    candidates = x.expand(-1, len(shares))
    errors = (fake_quantize(candidates, tried, grid, granularity) - candidates).abs_().pow_(ERROR_POWER)
    size = granularity.group_size or x.shape[0]
    if x.shape[0] % size == 0:
        sums = errors.unflatten(0, (x.shape[0] // size, size)).sum(dim=1)
    else:
        sums = torch.stack([part.sum(dim=0) for part in errors.split(size, dim=0)])
    best = sums.argmin(dim=1, keepdim=True)
    zero_point = None if tried.zero_point is None else tried.zero_point.gather(1, best)
    return Parameters(tried.scale.gather(1, best), zero_point)


def group_errors(change: torch.Tensor, hessian: torch.Tensor, granularity: Granularity) -> torch.Tensor:
    """Σ δ H δᵀ within each group, float32 of the granularity's parameter shape, for change [rows, columns]."""
    columns = change.shape[1]
    size = granularity.group_size or 0
    if granularity.kind == "row_group":
        parts = [
            _quadratic(change[:, at : at + size], hessian[at : at + size, at : at + size])
            for at in range(0, columns, size)
        ]
        return torch.stack(parts, dim=1)
    if granularity.kind == "row":
        return _quadratic(change, hessian)[:, None]
    if granularity.kind == "tensor":
        return _quadratic(change, hessian).sum().view(1, 1)
    entries = change.square() * hessian.diagonal()
    if granularity.kind == "column":
        return entries.sum(dim=0, keepdim=True)
    return torch.stack([part.sum(dim=0) for part in entries.split(size, dim=0)])


def _quadratic(change: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    return row_errors(hessian, change).float()
