"""The weights of a site's layers, rounded: nearest or GPTQ, in groups along a row or a column (AdaDim), ranges cut."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import nn

from channelwise.engine.memory import give_back_free
from channelwise.engine.plan import WeightPlan
from channelwise.engine.rows import RowShare
from channelwise.engine.world import ALONE, World
from channelwise.methods.gptq import ROWS, Factor, factor, gptq_
from channelwise.methods.hessian import Hessian, output_error
from channelwise.methods.ranges import searched_parameters
from channelwise.methods.site import LayerChoice
from channelwise.model.linears import weight_matrix
from channelwise.numerics.granularity import Granularity, row_slices
from channelwise.numerics.quantizer import Parameters, decode, encode, joined, parameters_of
from channelwise.numerics.transform import ChannelTransform
from channelwise.runtime.scheme import WeightScheme

PartLoss = Callable[[str, Iterable[torch.Tensor]], float]
"""From a layer's name and its rounded, transformed weight to the change of what the site's part of the block gives.

The weight comes as some rows after the other.
"""


@dataclass(frozen=True)
class Rounded:
    """A rounded weight [out_features, channels].

    above_lowest: its codes less the grid's lowest, uint8, as no grid is wider. parameters: decode them.
    """

    scheme: WeightScheme
    parameters: Parameters
    above_lowest: torch.Tensor

    @property
    def codes(self) -> torch.Tensor:
        """Its codes, int16."""
        return self._codes(slice(None))

    def values(self) -> Iterator[torch.Tensor]:
        """What the codes stand for, some rows after the other, float32."""
        return map(self.values_of, _parts(self.above_lowest, self.scheme.granularity))

    def values_of(self, rows: slice) -> torch.Tensor:
        """What the codes of some rows stand for, float32; `rows` cuts no group apart."""
        grid, granularity = self.scheme.grid, self.scheme.granularity
        return decode(self._codes(rows), self.parameters.of_rows(rows, granularity), grid, granularity)

    def _codes(self, rows: slice) -> torch.Tensor:
        return self.above_lowest[rows].to(torch.int16).add_(self.scheme.grid.lowest)


@dataclass(frozen=True)
class SiteRounding:
    """Rounds the weights of one site's layers.

    hessian: of the site's transformed input, shared by its layers; None only where the plan needs none. part_loss is
    asked where the plan chooses a direction by it. world: the ranks that divide each layer's rows among them.
    """

    plan: WeightPlan
    transform: ChannelTransform
    hessian: Hessian | None
    part_loss: PartLoss
    name: str
    world: World = ALONE

    def layer(self, linear: nn.Module, name: str, layer: LayerChoice) -> LayerChoice:
        """The layer's choice with its weight rounded as the plan says; parameters that a method searched are kept.

        Raises NumericalError, naming the site, where GPTQ's Hessian cannot be inverted.
        """
        notes: dict[str, float | str] = {}
        if self.plan.alternative is None:
            chosen = self._rounded(linear, layer.weights, layer.parameters)
        else:
            chosen, notes = self._better_direction(linear, name, layer.weights)
        error = {} if self.hessian is None else {"loss_own": self._own_loss(linear, chosen, self.hessian)}
        return replace(
            layer,
            weights=chosen.scheme,
            parameters=chosen.parameters,
            codes=chosen.codes,
            notes={**layer.notes, **notes, **error},
        )

    def _better_direction(
        self, linear: nn.Module, name: str, scheme: WeightScheme
    ) -> tuple[Rounded, dict[str, float | str]]:
        """AdaDim (arXiv 2309.15531, eq. 4): the direction with the lower loss, per output channel if they are equal."""
        assert self.plan.alternative is not None
        directions = {"oc": scheme, "ic": WeightScheme(scheme.grid, self.plan.alternative)}
        rounded: dict[str, Rounded] = {}
        losses: dict[str, float] = {}
        for direction, found in directions.items():
            rounded[direction] = self._rounded(linear, found, None)
            losses[direction] = self._loss(linear, name, rounded[direction])
            give_back_free(rounded[direction].above_lowest.numel())
        best = min(losses, key=losses.__getitem__)
        return rounded[best], {"direction": best, "loss_oc": losses["oc"], "loss_ic": losses["ic"]}

    def _loss(self, linear: nn.Module, name: str, rounded: Rounded) -> float:
        if self.plan.choose_on == "part" or self.hessian is None:
            return self.part_loss(name, rounded.values())
        return self._own_loss(linear, rounded, self.hessian)

    def _own_loss(self, linear: nn.Module, rounded: Rounded, hessian: Hessian) -> float:
        """The squared change of the layer's outputs, each rank adding that of its rows."""
        granularity = rounded.scheme.granularity
        share = RowShare.of(self.world, len(rounded.above_lowest), granularity)
        parameters = share.of_parameters(rounded.parameters) or rounded.parameters
        own = replace(rounded, parameters=parameters, above_lowest=share.of_weight(rounded.above_lowest))
        matrix = share.of_weight(weight_matrix(linear).detach())
        error = 0.0
        for rows in _parts(matrix, granularity):
            error += output_error(hessian, own.values_of(rows).sub_(self._folded(matrix[rows])))
        return share.total(error)

    def _folded(self, rows: torch.Tensor) -> torch.Tensor:
        """Some rows of a weight as they are rounded: transformed, float32, in memory of their own."""
        own = rows.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        return self.transform.fold_weight(own)

    def _rounded(self, linear: nn.Module, scheme: WeightScheme, parameters: Parameters | None) -> Rounded:
        granularity = scheme.granularity
        share = RowShare.of(self.world, len(weight_matrix(linear)), granularity)
        matrix, own = share.of_weight(weight_matrix(linear).detach()), share.of_parameters(parameters)
        codes, found = torch.empty(matrix.shape, dtype=torch.uint8, device=matrix.device), []
        for rows in _parts(matrix, granularity):
            given = None if own is None else own.of_rows(rows, granularity)
            # Without a name, what one part gave makes room before the next one is rounded.
            codes[rows], used = self._rounded_rows(self._folded(matrix[rows]), scheme, given)
            found.append(used)
            give_back_free(matrix.numel())
        return Rounded(scheme, share.joined_parameters(joined(found, dim=0)), share.joined_rows(codes))

    def _rounded_rows(
        self, weight: torch.Tensor, scheme: WeightScheme, parameters: Parameters | None
    ) -> tuple[torch.Tensor, Parameters]:
        """Codes above the lowest, int16, and parameters of some rows of a weight, which are transformed already.

        The weight's memory may be used for something else.
        """
        grid, granularity = scheme.grid, scheme.granularity
        if self.plan.search_clip and self.hessian is not None:
            parameters = searched_parameters(weight, self.hessian.matrix, grid, granularity)
        if self.plan.rounding is not None:
            fixed = None if granularity.kind in ("column", "column_group") else parameters
            codes, parameters = gptq_(weight, self._factor, grid, granularity, self.plan.rounding, fixed)
        else:
            parameters = parameters or parameters_of(weight, grid, granularity)
            codes = encode(weight, parameters, grid, granularity)
        return codes.sub_(grid.lowest), parameters

    @cached_property
    def _factor(self) -> Factor:
        assert self.hessian is not None and self.plan.rounding is not None
        return factor(self.hessian.matrix, self.plan.rounding, self.name, self.world)


def _parts(matrix: torch.Tensor, granularity: Granularity) -> list[slice]:
    """Rows that are in float32 at a time: all where they share scales, and where only few would be slow."""
    count = len(matrix)
    together = granularity.kind in ("tensor", "column") or matrix.device.type != "cpu"
    return row_slices(count, granularity, count if together else ROWS)
