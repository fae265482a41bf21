"""Inner loops on a GPU, a simulated one: the host never waits for the device, and asks it for few operations."""

import pytest
import torch

from channelwise.engine.statistics import StatisticsBuilder
from channelwise.methods.format_problem import LayerProblem, WeightFormat, row_scale
from channelwise.methods.format_search import InputSearch, WeightSearch, search_ratios
from channelwise.methods.gptq import Factor, Gptq, factor, gptq_
from channelwise.methods.hessian import Hessian, HessianBuilder, output_error, row_errors
from channelwise.methods.ranges import searched_parameters
from channelwise.numerics.granularity import Granularity
from channelwise.numerics.grids import FloatGrid, Grid, IntegerGrid
from channelwise.numerics.transform import ChannelTransform
from tests.methods.test_gptq import GRANULARITIES, GRIDS, correlated_inputs, hessian_of, random_weight
from tests.simulated import DEVICE, Simulation, on_device


def there(found: Factor) -> Factor:
    return Factor(on_device(found.memory), on_device(found.order), found.damping)


def random(*shape: int) -> torch.Tensor:
    return on_device(torch.randn(shape, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("smallest_range", [1.0, 0.85])
@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_gptq_waits_for_no_column(
    simulation: Simulation, grid: Grid, granularity: Granularity, smallest_range: float
) -> None:
    found = there(factor(hessian_of(correlated_inputs(0)).matrix, Gptq(), "layer"))
    simulation.waits.clear()
    gptq_(on_device(random_weight(0)), found, grid, granularity, Gptq(block=8, smallest_range=smallest_range))
    assert simulation.waits.total() == 0


@pytest.mark.parametrize(
    ("granularity", "operations"), [(Granularity("row_group", 8), 8), (Granularity("column_group", 8), 20)], ids=str
)
def test_a_column_of_gptq_takes_few_operations(
    simulation: Simulation, monkeypatch: pytest.MonkeyPatch, granularity: Granularity, operations: int
) -> None:
    # With a zero point. Ranges of groups down a column are found in its turn, which takes a dozen of them.
    monkeypatch.setattr("channelwise.methods.gptq.recorder_for", lambda device: None)
    grid, counts = IntegerGrid(4, symmetric=False), []
    for columns in (32, 64):
        found = there(factor(hessian_of(correlated_inputs(0, 200, columns)).matrix, Gptq(), "layer"))
        weight = on_device(random_weight(0, 16, columns))
        simulation.kernels.clear()
        gptq_(weight.clone(), found, grid, granularity, Gptq(block=64))
        counts.append(simulation.kernels.total())
    assert counts[1] - counts[0] == 32 * operations


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_search_of_ranges_waits_for_no_candidate(
    simulation: Simulation, grid: Grid, granularity: Granularity
) -> None:
    searched_parameters(on_device(random_weight(0)), random(22, 22), grid, granularity)
    assert simulation.waits.total() == 0


def test_statistics_and_hessians_wait_for_no_sample(simulation: Simulation) -> None:
    statistics, hessian = StatisticsBuilder(600, DEVICE), HessianBuilder(600, DEVICE)
    for _ in range(3):
        statistics.update(random(2, 5, 600))
        hessian.update(random(2, 5, 600))
    found = statistics.finish()
    hessian.finish().transform_(ChannelTransform(found.center, found.absolute_maximum))
    assert simulation.waits.total() == 0


def test_an_output_error_is_read_once_and_its_precision_once(simulation: Simulation) -> None:
    change, matrix = random(2100, 600), random(600, 600)
    row_errors(matrix, change)
    assert simulation.waits.total() == 0
    output_error(Hessian(matrix @ matrix.t(), random(600), 10), change)
    assert simulation.waits.total() == 2


@pytest.mark.parametrize("pre_shift", [True, False])
def test_a_search_of_formats_waits_for_no_candidate(simulation: Simulation, pre_shift: bool) -> None:
    inputs, weight = random(7, 12), random(9, 12)
    problem = LayerProblem(inputs, weight, inputs.abs().amax(dim=0))
    shares = random(40).abs() + 0.1
    found = WeightFormat(FloatGrid(2, 1), row_scale(weight, FloatGrid(2, 1), 1.0))
    by_input, by_weight = InputSearch(problem, found, pre_shift), WeightSearch(problem, inputs)
    for grid in (FloatGrid(2, 1), FloatGrid(1, 2), FloatGrid(3, 0)):
        start = torch.zeros(1, dtype=torch.int64, device=DEVICE)
        search_ratios(lambda at, grid=grid: by_input.losses_of_one(grid, shares[at]), 40, (8, 2, 1), start)
        search_ratios(lambda at, grid=grid: by_weight.losses(grid, shares[at]), 40, (8, 2, 1), start.expand(9))
    assert simulation.waits.total() == 0
