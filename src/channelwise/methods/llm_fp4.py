"""LLM-FP4 (arXiv 2310.16836): searched floating-point formats and ranges, and the pre-shifted exponent bias."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from channelwise.methods.format_problem import InputFormat, LayerProblem, WeightFormat, input_format, row_scale
from channelwise.methods.format_search import (
    STRIDES,
    InputSearch,
    WeightSearch,
    place_of_one,
    ratio_grid,
    search_ratios,
)
from channelwise.methods.options import OPTIONS
from channelwise.methods.site import Choice, InputQuantizer, LayerChoice, SiteView
from channelwise.numerics.granularity import ROW
from channelwise.numerics.grids import FloatGrid, Grid, grid_name
from channelwise.numerics.quantizer import Parameters
from channelwise.numerics.transform import ChannelTransform
from channelwise.runtime.scheme import InputScheme, WeightScheme

LATER_STRIDES = (0, 4, 2, 1)
"""Later rounds begin where the one before ended."""

LATER_GRIDS = 2
"""How many formats stay in the running after the first round."""

Losses = Callable[[FloatGrid, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, config=OPTIONS)
class LlmFp4:
    """Format and clipping range of weights and inputs, in alternating rounds, by each layer's own output error.

    pre_shift: whether every input channel gets an exponent bias of its own (§4). rounds: of weight, then input.
    ratios: how many clipping ranges the grid has, from 0.01 to 1.2 of the largest number; 1 is always one more.
    search: `full` looks at all of them in every round; `coarse_to_fine` at about a fifth in the first round, and later
    only at some around the best of the two best formats.
    """

    pre_shift: bool = True
    rounds: Annotated[int, Field(ge=1, le=20)] = 3
    ratios: Annotated[int, Field(ge=2, le=10_000)] = 100
    search: Literal["coarse_to_fine", "full"] = "coarse_to_fine"

    def choose(self, site: SiteView) -> Choice:
        """The quantizers of every layer of the site; no channel transform.

        Raises ValueError where a grid is not a floating-point one.
        """
        weights, inputs = _float_only(site.weight_grids), _float_only(site.input_grids)
        samples, importance = site.samples, site.importance

        def solve(layer: int) -> LayerChoice:
            largest = site.statistics.absolute_maximum
            problem = LayerProblem(samples, site.weights[layer], largest, importance[layer])
            return self.choose_layer(problem, weights, inputs)

        layers = site.solved(solve, [float(weight.numel()) for weight in site.weights])
        loss = sum(float(layer.notes["loss"]) for layer in layers)
        return Choice(ChannelTransform(), {"loss": loss}, layers=layers)

    def choose_layer(
        self, problem: LayerProblem, weights: Sequence[FloatGrid], inputs: Sequence[FloatGrid]
    ) -> LayerChoice:
        """The quantizers of one layer; no grid for the inputs leaves them in floating point.

        The result's loss is never above that of the min-max formats it could have.
        """
        found = self._searched(problem, weights, inputs)
        plain = _min_max(problem, nearest_to_e2(weights), nearest_to_e2(inputs) if inputs else None)
        loss, plain_loss = found.loss(problem), plain.loss(problem)
        if plain_loss < loss:
            found, loss = plain, plain_loss
        return found.layer_choice({"loss": loss, "loss_min_max": plain_loss})

    def _searched(self, problem: LayerProblem, weights: Sequence[FloatGrid], inputs: Sequence[FloatGrid]) -> "_Formats":
        weight_ranges, input_ranges = self._ranges(problem.weight.shape[0], problem), self._ranges(1, problem)
        input_found: InputFormat | None = None
        for number in range(self.rounds if inputs else 1):
            seen = problem.inputs if input_found is None else input_found.quantized(problem.inputs)
            grid, ratios = weight_ranges.best(WeightSearch(problem, seen).losses, weights, number)
            weight_found = WeightFormat(grid, row_scale(problem.weight, grid, ratios[:, None]))
            if not inputs:
                break
            by_input = InputSearch(problem, weight_found, self.pre_shift)
            grid, ratios = input_ranges.best(by_input.losses_of_one, inputs, number)
            input_found = input_format(problem.largest, grid, ratios[0], self.pre_shift)
        return _Formats(weight_found, input_found)

    def _ranges(self, rows: int, problem: LayerProblem) -> "_Ranges":
        return _Ranges(ratio_grid(self.ratios).to(problem.weight.device), rows, self.search == "full")


@plain_dataclass(frozen=True)
class _Ranges:
    """The clipping ratios of one thing with `rows` independent rows, and where the search stands.

    places: of each grid, indices int64 [rows] of its best ratios. running: the grids that later rounds look at.
    """

    ratios: torch.Tensor
    rows: int
    full: bool
    places: dict[FloatGrid, torch.Tensor] = field(default_factory=dict)
    running: list[FloatGrid] = field(default_factory=list)

    def best(self, losses: Losses, grids: Sequence[FloatGrid], number: int) -> tuple[FloatGrid, torch.Tensor]:
        """The grid with the least loss over all rows together, and its ratios, float32 [rows]."""
        sums: dict[FloatGrid, torch.Tensor] = {}
        strides = (1,) if self.full else STRIDES if number == 0 else LATER_STRIDES
        for grid in self.running or grids:

            def at(indices: torch.Tensor, grid: FloatGrid = grid) -> torch.Tensor:
                return losses(grid, self.ratios[indices])

            place, least = search_ratios(at, len(self.ratios), strides, self.places.get(grid, self._of_one()))
            self.places[grid] = place
            sums[grid] = least.sum()
        # One look at the device for all grids.
        totals = dict(zip(sums, torch.stack(list(sums.values())).tolist(), strict=True))
        if not self.full and not self.running:
            self.running.extend(sorted(totals, key=totals.__getitem__)[:LATER_GRIDS])
        chosen = min(totals, key=totals.__getitem__)
        return chosen, self.ratios[self.places[chosen]]

    def _of_one(self) -> torch.Tensor:
        return place_of_one(self.ratios).expand(self.rows)


@plain_dataclass(frozen=True)
class _Formats:
    """The formats of one layer."""

    weight: WeightFormat
    inputs: InputFormat | None

    def loss(self, problem: LayerProblem) -> float:
        """Sum over features, mean over tokens, of the weighted squared error."""
        seen = problem.inputs if self.inputs is None else self.inputs.quantized(problem.inputs)
        return problem.loss(seen, self.weight.quantized(problem.weight))

    def layer_choice(self, losses: dict[str, float]) -> LayerChoice:
        """The same as the engine takes it."""
        notes: dict[str, float | str] = {"weights": grid_name(self.weight.grid), **losses}
        quantizer = None
        if self.inputs is not None:
            exponents = self.inputs.exponents
            notes["inputs"] = grid_name(self.inputs.grid)
            notes["input_bias"] = -float(torch.log2(self.inputs.scale.double()))
            if exponents is not None:
                notes["largest_exponent"] = float(exponents.amax())
            quantizer = InputQuantizer(InputScheme(self.inputs.grid, "static"), self.inputs.scale, exponents=exponents)
        return LayerChoice(WeightScheme(self.weight.grid, ROW), Parameters(self.weight.scale), quantizer, notes)


def nearest_to_e2(grids: Sequence[FloatGrid]) -> FloatGrid:
    """The one with two exponent bits (E2M1 of the 4-bit formats), else the one nearest to that."""
    return min(grids, key=lambda grid: abs(grid.exponent_bits - 2))


def _min_max(problem: LayerProblem, weights: FloatGrid, inputs: FloatGrid | None) -> _Formats:
    """Ranges that just cover the largest numbers, without a pre-shift."""
    weight = WeightFormat(weights, row_scale(problem.weight, weights, 1.0))
    return _Formats(weight, None if inputs is None else input_format(problem.largest, inputs, 1.0, pre_shift=False))


def _float_only(grids: Sequence[Grid]) -> tuple[FloatGrid, ...]:
    found = tuple(grid for grid in grids if isinstance(grid, FloatGrid))
    if len(found) < len(grids):
        raise ValueError("llm_fp4 searches floating-point formats only")
    return found
