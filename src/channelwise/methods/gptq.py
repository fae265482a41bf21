"""GPTQ (arXiv 2210.17323): rounding column by column, each one making up for the errors of those before it.

The output error of a row's change δ is δ H δᵀ. With H = V D Vᵀ, V upper triangular with a diagonal of ones, it is
Σ_k D_k (δ V)_k², and (δ V)_k = δ_k + Σ_{i<k} δ_i V_ik depends on no later column. So when column k has its turn, the
value to round is w_k − Σ_{i<k} δ_i V_ik. This is what the paper's updates by rows of the inverse Hessian's Cholesky
factor add up to, without the inverse.
"""

from dataclasses import dataclass as plain_dataclass
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from channelwise.errors import NumericalError
from channelwise.methods.options import OPTIONS
from channelwise.methods.ranges import least_error_parameters
from channelwise.methods.repeated import Repeated, recorder_for
from channelwise.methods.triangular import ALONE, Ranks, factor_below
from channelwise.numerics.floats import float_lattice
from channelwise.numerics.granularity import Granularity, parameter_shape, row_slices
from channelwise.numerics.grids import FloatGrid, Grid
from channelwise.numerics.quantizer import Parameters, encode, joined, parameters_of

DAMPING_STEP = 10.0
"""How many times more damping each further attempt takes."""

ROWS = 2048
"""Rows of a weight that are rounded at a time on a processor, where few keep memory low; elsewhere all are."""


@dataclass(frozen=True, config=OPTIONS)
class Gptq:
    """damping: what is added to the Hessian's diagonal, as a share of the mean of its channels that are not dead.

    retries: further attempts with ten times the damping each, where the Hessian is still not positive definite.
    act_order: columns with the largest diagonal first. block: columns whose effect on those behind the block is
    applied at once; changes the speed only. smallest_range: groups along a column, whose ranges are found in their
    turn, are cut to the share of their range from here to 1 that rounds best; 1 cuts nothing, as in AdaDim's paper.
    """

    damping: Annotated[float, Field(gt=0, le=1)] = 0.01
    block: Annotated[int, Field(ge=1)] = 128
    act_order: bool = True
    retries: Annotated[int, Field(ge=0, le=10)] = 5
    smallest_range: Annotated[float, Field(gt=0, le=1)] = 1.0


@plain_dataclass(frozen=True)
class Factor:
    """What the rounding of every layer of a site takes from its Hessian.

    memory: float32 [channels, channels], which below its diagonal has V, upper triangular with a diagonal of ones, from
    the end to the beginning (`triangular.factor_below`): what a change of one column asks of the later ones, columns in
    the order of rounding. order: int64 [channels], the channels in that order. damping: the share of the mean diagonal
    that it took.
    """

    memory: torch.Tensor
    order: torch.Tensor
    damping: float

    @property
    def effects(self) -> torch.Tensor:
        """V, float32 [channels, channels], in memory of its own."""
        return self.memory.flip(0, 1).triu_(1).fill_diagonal_(1.0)

    def within(self, part: slice) -> torch.Tensor:
        """What some columns ask of each other: V of these, of which what is above the diagonal counts."""
        return self._flipped(part, slice(len(self.memory) - part.stop, len(self.memory) - part.start))

    def onward(self, part: slice) -> torch.Tensor:
        """What some columns ask of all after them: V [columns, columns after them]."""
        return self._flipped(part, slice(0, len(self.memory) - part.stop))

    def _flipped(self, part: slice, columns: slice) -> torch.Tensor:
        size = len(self.memory)
        return self.memory[size - part.stop : size - part.start, columns].flip(0, 1)


@torch.no_grad()
def factor(matrix: torch.Tensor, options: Gptq, name: str, ranks: Ranks = ALONE) -> Factor:
    """The factor of a site's Hessian, float32 [channels, channels], written below the diagonal of that very matrix.

    What the matrix has on and above its diagonal is read and kept; what it has below is overwritten. Dead channels
    (diagonal 0) come last and are cut off from the others: their weights are rounded to nearest, since another input
    may still wake them. Computed in float64; memory is that of some panels. ranks: who divides the work.

    Raises NumericalError, with `name` in its message, if an entry is not finite, or if the Hessian is not positive
    definite after the last retry.
    """
    if not bool(torch.isfinite(torch.stack(torch.aminmax(matrix))).all()):
        raise NumericalError(f"{name}: its Hessian is not finite; check the model's weights and dtype")
    diagonal = matrix.diagonal().double()
    dead = diagonal <= 0
    order = torch.arange(len(diagonal), device=matrix.device)
    if options.act_order:
        order = torch.argsort(diagonal, descending=True, stable=True)
    mean = diagonal[~dead].mean() if bool((~dead).any()) else diagonal.new_ones(())
    undamped = torch.where(dead, mean, diagonal)[order]
    share = options.damping
    for attempt in range(options.retries + 1):
        share = options.damping * DAMPING_STEP**attempt
        if factor_below(matrix, order, undamped + share * mean, ranks) is not None:
            return Factor(matrix, order, share)
    raise NumericalError(f"{name}: its Hessian is singular even with damping {share:g}; give more calibration tokens")


@torch.no_grad()
def gptq_(
    weight: torch.Tensor,
    factor: Factor,
    grid: Grid,
    granularity: Granularity,
    options: Gptq,
    parameters: Parameters | None = None,
) -> tuple[torch.Tensor, Parameters]:
    """Codes int16 [rows, columns] of a weight [rows, columns], and the parameters that decode them.

    parameters: fixed ones, such as searched scales; otherwise min-max. Those of a tensor, a row or a group along a row
    come from the weight as given, so columns may be rounded in any order. Those of a column or a group along a column
    (per-IC, arXiv 2309.15531) come from its values when its turn comes, and cannot be fixed.

    Computes in float32 on the weight's device, where the factor has to be, and in the weight's own memory, which holds
    nothing of use afterwards. Raises ValueError where the factor or the parameters do not fit the weight, or the weight
    is not contiguous float32.
    """
    rows, columns = weight.shape
    if not weight.is_contiguous() or weight.dtype != torch.float32:
        raise ValueError("GPTQ computes in the weight's memory, which has to be contiguous and float32")
    if len(factor.order) != columns:
        raise ValueError(f"a factor of {len(factor.order)} channels does not fit a weight of {columns} columns")
    in_turn = granularity.kind in ("column", "column_group")
    if parameters is None:
        fixed = None if in_turn else parameters_of(weight, grid, granularity)
    else:
        _check_fixed(parameters, (rows, columns), granularity)
        fixed = parameters

    # Rows are independent, but for what a column's values share.
    together = rows if granularity.kind == "column" or weight.device.type != "cpu" else ROWS
    codes, found = [], []
    for part in row_slices(rows, granularity, together):
        own = None if fixed is None else fixed.of_rows(part, granularity)
        rounded, used = _rounded(weight[part], factor, grid, granularity, options, own)
        codes.append(rounded)
        found.append(used)
    return codes[0] if len(codes) == 1 else torch.cat(codes), joined(found, dim=0) if fixed is None else fixed


def _rounded(
    weight: torch.Tensor, factor: Factor, grid: Grid, granularity: Granularity, options: Gptq, fixed: Parameters | None
) -> tuple[torch.Tensor, Parameters]:
    """`gptq_` of some rows; parameters in their turn where none are fixed."""
    rows, columns = weight.shape
    # Columns are rows here, so that each is contiguous; from the top down they turn into lattice values.
    order = factor.order
    original = torch.empty(columns, rows, device=weight.device).copy_(weight.t())
    work = torch.index_select(original, 0, order, out=weight.view(columns, rows))
    rounding = Repeated(_BlockRounding(grid, granularity, options), recorder_for(weight.device))
    found: list[Parameters] = []
    for start in range(0, columns, options.block):
        part = slice(start, min(start + options.block, columns))
        shared = () if fixed is None else _of_columns(fixed, order[part] // (granularity.group_size or columns))
        changes, *own = rounding(work[part], original[order[part]], factor.within(part), *shared)
        work[part.stop :].addmm_(factor.onward(part).t(), changes, alpha=-1)
        if fixed is None:
            found.append(Parameters(*own))

    # The original's memory takes the lattice values in the order of the channels.
    lattice = original.index_copy_(0, order, work).t()
    back = torch.argsort(order)
    result = _of_groups(joined(found, dim=1), back) if fixed is None else fixed
    unscaled = Parameters(torch.ones_like(result.scale), result.zero_point)
    return encode(lattice, unscaled, grid, granularity), result


@plain_dataclass(frozen=True)
class _BlockRounding:
    """Rounds some columns in their order, each one making up for the errors of those before it.

    block: float32 [columns, rows], the current values; lattice values (before the scale) take their place. given: the
    original ones. effects: their part of V. shared: scales, and zero points if there are any, [columns, rows or 1];
    none where they come from a column's values in its turn. Gives the columns' changes [columns, rows], and scales and
    zero points [groups, columns] that were found. No value is read, so that all of it can be recorded.
    """

    grid: Grid
    granularity: Granularity
    options: Gptq

    def __call__(
        self, block: torch.Tensor, given: torch.Tensor, effects: torch.Tensor, *shared: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        changes = torch.empty_like(block)
        found: list[Parameters] = []
        for index, (column, change) in enumerate(zip(block, changes, strict=True)):
            values, lost = column, change
            if shared:
                own = Parameters(*[part[index] for part in shared])
            else:
                found.append(_in_turn(column[:, None], self.grid, self.granularity, self.options))
                own, shape = _beside(found[-1], len(column), self.granularity)
                values, lost = column.view(shape), change.view(shape)
            _round(values, own, self.grid)
            torch.mul(values, own.scale, out=lost)
            change.sub_(given[index])
            block[index + 1 :].addr_(effects[index, index + 1 :], change, alpha=-1)
        if shared:
            return (changes,)
        parameters = joined(found, dim=1)
        return (changes, *_tensors(parameters))


def _in_turn(column: torch.Tensor, grid: Grid, granularity: Granularity, options: Gptq) -> Parameters:
    """Parameters of a column's current values [rows, 1]."""
    if options.smallest_range < 1.0:
        return least_error_parameters(column, grid, granularity, options.smallest_range)
    return parameters_of(column, grid, granularity)


def _check_fixed(parameters: Parameters, shape: tuple[int, int], granularity: Granularity) -> None:
    if granularity.kind in ("column", "column_group"):
        raise ValueError(f"parameters of granularity {granularity.kind} follow from the rounding and cannot be fixed")
    expected = parameter_shape(shape, granularity)
    if tuple(parameters.scale.shape) != expected:
        raise ValueError(f"scales of shape {tuple(parameters.scale.shape)} where {expected} is needed")


def _round(column: torch.Tensor, parameters: Parameters, grid: Grid) -> None:
    """Puts the nearest lattice values (before the scale) in place of a column's values; as `encode` finds them."""
    column.div_(parameters.scale)
    if isinstance(grid, FloatGrid):
        column.copy_(float_lattice(column, grid))
    elif parameters.zero_point is None:
        column.round_().clamp_(grid.lowest, grid.highest)
    else:
        zero_point = parameters.zero_point
        column.round_().add_(zero_point).clamp_(grid.lowest, grid.highest).sub_(zero_point)


def _tensors(parameters: Parameters) -> tuple[torch.Tensor, ...]:
    """Scale, and zero point if there is one."""
    return (parameters.scale,) if parameters.zero_point is None else (parameters.scale, parameters.zero_point)


def _of_columns(parameters: Parameters, groups: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Parameters [rows or 1, groups] at some groups, transposed: [columns, rows or 1]."""
    return tuple(part.t()[groups] for part in _tensors(parameters))


def _beside(parameters: Parameters, rows: int, granularity: Granularity) -> tuple[Parameters, torch.Size]:
    """One column's parameters [groups, 1], and the shape of the column's values that they broadcast against."""
    size, zero_point = granularity.group_size or rows, parameters.zero_point
    if rows % size == 0:
        return parameters, torch.Size((rows // size, size))
    # Three times as fast as `expand`, which counts for what is done once per column.
    scale = parameters.scale.expand(-1, size).reshape(-1)[:rows]
    zero_point = None if zero_point is None else zero_point.expand(-1, size).reshape(-1)[:rows]
    return Parameters(scale, zero_point), torch.Size((rows,))


def _of_groups(parameters: Parameters, groups: torch.Tensor) -> Parameters:
    """Parameters [groups, columns] at some columns."""
    zero_point = parameters.zero_point
    return Parameters(parameters.scale[:, groups], None if zero_point is None else zero_point[:, groups])
