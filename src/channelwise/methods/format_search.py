"""The joint search of LLM-FP4 (arXiv 2310.16836, §3.2 and §4): format and clipping range, by a layer's output error.

With inputs X [tokens, channels] and a weight W [out_features, channels] the error is Σ a_t g_k (X Wᵀ − X̃ W̃ᵀ)²_tk, a and
g the importance of tokens and outputs (1, or from the diagonal Fisher information). It is a quadratic form in what
rounding changes, so candidates cost one product with a [channels, channels] matrix instead of two with the outputs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from channelwise.methods.format_problem import LayerProblem, WeightFormat, chunks, input_format, row_scale
from channelwise.numerics.floats import float_lattice
from channelwise.numerics.grids import FloatGrid
from channelwise.numerics.transform import ChannelTransform
from channelwise.runtime.scheme import InputScheme
from channelwise.runtime.trial import byte_execution, fits_bytes, integers_are_fast
from channelwise.runtime.whole import WholeWeight

SMALLEST_RATIO, LARGEST_RATIO = 0.01, 1.2

LARGEST_OUTPUTS = 2**26
"""Numbers of a layer's outputs that may be kept for candidates to be compared with: 256 MiB."""


@dataclass(frozen=True)
class WeightSearch:
    """Searches one layer's weight for given quantized inputs X̃ [tokens, channels]: row by row, each on its own."""

    problem: LayerProblem
    inputs: torch.Tensor

    @cached_property
    def _gram(self) -> torch.Tensor:
        return self._weighted.t() @ self.inputs

    @cached_property
    def _pull(self) -> torch.Tensor:
        """What (X − X̃) Wᵀ pulls each row towards, [out_features, channels]."""
        return self.problem.weight @ (self._weighted.t() @ (self.problem.inputs - self.inputs)).t()

    @cached_property
    def _weighted(self) -> torch.Tensor:
        return self.problem.by_token(self.inputs.t()).t()

    def losses(self, grid: FloatGrid, ratios: torch.Tensor) -> torch.Tensor:
        """Losses up to a constant per row, float64 [candidates, out_features].

        ratios: float32 [candidates, out_features] of the row's largest |w|.
        """
        count, rows = ratios.shape
        found = torch.empty(count, rows, dtype=torch.float64, device=ratios.device)
        for part in chunks(rows, count * self.problem.weight.shape[1]):
            weight = self.problem.weight[part]
            scale = row_scale(weight, grid, ratios[:, part, None])
            change = float_lattice(weight / scale, grid).mul_(scale).sub_(weight)
            moved = (change @ self._gram).sub_(2.0 * self._pull[part])
            found[:, part] = moved.mul_(change).sum(dim=2, dtype=torch.float64)
        return self.problem.by_output(found)


@dataclass(frozen=True)
class InputSearch:
    """Searches the format of one layer's input for a given format of its weight.

    Where inputs and weight fit into bytes, and a processor multiplies those, the layer itself is tried.
    """

    problem: LayerProblem
    format: WeightFormat
    pre_shift: bool

    @cached_property
    def _weight(self) -> torch.Tensor:
        return self.format.quantized(self.problem.weight)

    @cached_property
    def _weighted(self) -> torch.Tensor:
        return self.problem.by_output(self._weight.t(), power=0.5).t()

    @cached_property
    def _lost(self) -> torch.Tensor:
        """What the weight's rounding changed, weighted alike."""
        return self.problem.by_output((self.problem.weight - self._weight).t(), power=0.5).t()

    @cached_property
    def _missing(self) -> torch.Tensor:
        return self.problem.inputs @ self._lost.t()

    @cached_property
    def _gram(self) -> torch.Tensor:
        return self._weighted.t() @ self._weighted

    @cached_property
    def _pull(self) -> torch.Tensor:
        return self.problem.inputs @ (self._lost.t() @ self._weighted)

    @cached_property
    def _rest(self) -> torch.Tensor:
        """What the quadratic form leaves out, the loss without a change of the inputs, float64 []."""
        total = torch.zeros((), dtype=torch.float64, device=self._lost.device)
        for part in chunks(len(self.problem.inputs), len(self._lost)):
            errors = (self.problem.inputs[part] @ self._lost.t()).square_().sum(dim=1)
            total += self.problem.by_token(errors, part).sum(dtype=torch.float64)
        return total

    @cached_property
    def _whole(self) -> WholeWeight | None:
        return self.format.whole(self.problem.weight)

    @property
    def _by_gram(self) -> bool:
        rows, columns = self.problem.weight.shape
        return columns <= rows

    def losses(self, grid: FloatGrid, ratios: torch.Tensor) -> torch.Tensor:
        """The weighted squared errors, float64 [candidates]; ratios: float32 [candidates] of the largest |x|."""
        if self._takes_bytes(grid) and self._whole is not None:
            return torch.stack([self._loss_of_bytes(self._whole, grid, ratio) for ratio in ratios])
        scales = input_format(self.problem.largest, grid, ratios[:, None], self.pre_shift).channel_scales[:, None]
        total = torch.zeros(len(ratios), dtype=torch.float64, device=ratios.device)
        tokens, columns = self.problem.inputs.shape
        for part in chunks(tokens, len(ratios) * max(columns, 0 if self._by_gram else self._weight.shape[0])):
            x = self.problem.inputs[part]
            change = float_lattice(x / scales, grid).mul_(scales).sub_(x)
            if self._by_gram:
                errors = (change @ self._gram).sub_(2.0 * self._pull[part]).mul_(change).sum(dim=2)
            else:
                errors = (change @ self._weighted.t()).sub_(self._missing[part]).square_().sum(dim=2)
            total += self.problem.by_token(errors, part).sum(dim=1, dtype=torch.float64)
        return total + self._rest if self._by_gram else total

    def _takes_bytes(self, grid: FloatGrid) -> bool:
        """Whether inputs of this grid are bytes that are multiplied fast; the outputs are kept meanwhile."""
        outputs = len(self.problem.inputs) * len(self.problem.weight)
        if self.problem.inputs.device.type != "cpu" or outputs > LARGEST_OUTPUTS or not integers_are_fast():
            return False
        return fits_bytes(grid, 2**grid.exponent_bits - 1 if self.pre_shift else 0)

    def _loss_of_bytes(self, weight: WholeWeight, grid: FloatGrid, ratio: torch.Tensor) -> torch.Tensor:
        """The loss of one candidate, float64 []: of what the quantized layer gives."""
        chosen = input_format(self.problem.largest, grid, ratio, self.pre_shift)
        inputs = InputScheme(grid, "static")
        layer = byte_execution(weight, None, ChannelTransform(), inputs, chosen.scale, exponents=chosen.exponents)
        total = torch.zeros((), dtype=torch.float64)
        for part in chunks(len(self.problem.inputs), len(weight.values)):
            errors = layer(self.problem.inputs[part]).sub_(self.problem.outputs[part]).square_()
            total += self.problem.by_token(self.problem.by_output(errors).sum(dim=1), part).sum(dtype=torch.float64)
        return total

    def losses_of_one(self, grid: FloatGrid, ratios: torch.Tensor) -> torch.Tensor:
        """The same with candidates and losses as [candidates, 1]: the input is one row to search."""
        return self.losses(grid, ratios[:, 0])[:, None]


def search_ratios(
    losses: Callable[[torch.Tensor], torch.Tensor], size: int, strides: Sequence[int], start: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The indices 0 … size − 1 with the least loss, searched for many independent rows at once.

    losses: from indices int64 [candidates, rows] to their losses of that shape. start: int64 [rows], an index that is
    looked at in any case. strides: first every strides[0]-th index (none if it is 0), then by each further stride
    around the best so far. Returns indices int64 [rows] and losses float64 [rows].
    """
    best, least = start, losses(start[None])[0]

    def take(candidates: torch.Tensor) -> None:
        nonlocal best, least
        found = losses(candidates)
        value, place = found.min(dim=0)
        better = value < least
        best = torch.where(better, candidates.gather(0, place[None])[0], best)
        least = torch.where(better, value, least)

    if strides[0]:
        grid = torch.arange(0, size, strides[0], device=start.device)
        take(grid[:, None].expand(-1, len(start)))
    for stride in strides[1:]:
        take(torch.stack([(best - stride).clamp(min=0), (best + stride).clamp(max=size - 1)]))
    return best, least


STRIDES = (8, 4, 2, 1)
"""A search from nothing looks at every eighth ratio, then closer around the best."""


def place_of_one(ratios: torch.Tensor) -> torch.Tensor:
    """Where 1 stands in a grid of ratios, int64 []; not read back from the device."""
    return (ratios == 1).int().argmax()


def ratio_grid(count: int) -> torch.Tensor:
    """The format's largest value over the largest number: `count` from 0.01 to 1.2 (the paper's), and 1; float32."""
    evenly = torch.linspace(SMALLEST_RATIO, LARGEST_RATIO, count, dtype=torch.float64)
    return torch.unique(torch.cat([evenly, torch.ones(1, dtype=torch.float64)])).float()


def best_rows(table: torch.Tensor, grids: Sequence[FloatGrid], ratios: int = 100) -> WeightFormat:
    """The format of a matrix float32 [rows, columns] with the least squared error, one scale for each row."""
    shares = ratio_grid(ratios).to(table.device)
    one = place_of_one(shares).expand(len(table))
    found: list[tuple[float, WeightFormat]] = []
    for grid in grids:

        def losses(indices: torch.Tensor, grid: FloatGrid = grid) -> torch.Tensor:
            return _row_errors(table, grid, shares[indices])

        places, least = search_ratios(losses, len(shares), STRIDES, one)
        found.append((float(least.sum()), WeightFormat(grid, row_scale(table, grid, shares[places][:, None]))))
    return min(found, key=lambda pair: pair[0])[1]


def _row_errors(table: torch.Tensor, grid: FloatGrid, ratios: torch.Tensor) -> torch.Tensor:
    """Squared errors, float64 [candidates, rows]."""
    errors = torch.empty(ratios.shape, dtype=torch.float64, device=table.device)
    for part in chunks(len(table), len(ratios) * table.shape[1]):
        scale = row_scale(table[part], grid, ratios[:, part, None])
        change = float_lattice(table[part] / scale, grid).mul_(scale).sub_(table[part])
        errors[:, part] = change.square_().sum(dim=2, dtype=torch.float64)
    return errors
