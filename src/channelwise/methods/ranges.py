"""Cut ranges: groups whose largest weights saturate where that changes the output less (AWQ, arXiv 2306.00978)."""

import torch

from channelwise.numerics.granularity import Granularity, value_range
from channelwise.numerics.grids import Grid
from channelwise.numerics.quantizer import Parameters, fake_quantize, parameters_from_range, scale_dtype

SHARES = tuple(1.0 - step / 20 for step in range(11))
"""Shares of a group's range that are tried: 1 down to a half."""


def searched_parameters(
    weight: torch.Tensor, hessian: torch.Tensor, grid: Grid, granularity: Granularity
) -> Parameters:
    """Parameters of a weight float32 [rows, columns], each group's range cut to the share with the least output error.

    The error of a group is that of its entries alone, δ H δᵀ over its own columns of the Hessian [columns, columns];
    what groups do to each other is left out, as the range of each is searched on its own.
    """
    low, high = value_range(weight, granularity)
    dtype = scale_dtype(granularity)
    best = torch.full_like(low, torch.inf)
    chosen_low, chosen_high = low, high
    for share in SHARES:
        parameters = parameters_from_range(low * share, high * share, grid, dtype)
        errors = group_errors(fake_quantize(weight, parameters, grid, granularity) - weight, hessian, granularity)
        better = errors < best
        best = torch.where(better, errors, best)
        chosen_low = torch.where(better, low * share, chosen_low)
        chosen_high = torch.where(better, high * share, chosen_high)
    return parameters_from_range(chosen_low, chosen_high, grid, dtype)


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
    return ((change @ hessian) * change).sum(dim=1)
