"""Cut ranges of groups, against the explicit output error."""

import pytest
import torch

from channelwise.methods.ranges import SHARES, group_errors, least_error_parameters, searched_parameters
from channelwise.numerics.granularity import COLUMN, ROW, TENSOR, Granularity, value_range
from channelwise.numerics.grids import IntegerGrid
from channelwise.numerics.quantizer import Parameters, fake_quantize, parameters_from_range, parameters_of, scale_dtype

GRANULARITIES = [TENSOR, ROW, COLUMN, Granularity("row_group", 8), Granularity("column_group", 5)]
GRID = IntegerGrid(3, symmetric=False)


def inputs_and_weight(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(200, 20, generator=generator) * torch.exp(torch.randn(20, generator=generator))
    return x, torch.randn(12, 20, generator=generator) ** 3


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_groups_error_is_that_of_the_outputs_when_only_this_group_changes(granularity: Granularity) -> None:
    x, weight = inputs_and_weight()
    parameters = parameters_of(weight, GRID, granularity)
    change = fake_quantize(weight, parameters, GRID, granularity) - weight
    found = group_errors(change, x.t() @ x, granularity)
    assert found.shape == parameters.scale.shape
    groups = torch.arange(found.numel()).view(found.shape)
    member = fake_quantize_places(groups, granularity, (12, 20))
    for group in range(found.numel()):
        alone = torch.where(member == group, change, torch.zeros_like(change)).double()
        exact = (x.double() @ alone.t()).square().sum()
        torch.testing.assert_close(found.flatten()[group].double(), exact, rtol=1e-4, atol=1e-6 * float(exact) + 1e-9)


def fake_quantize_places(groups: torch.Tensor, granularity: Granularity, shape: tuple[int, int]) -> torch.Tensor:
    """Which group every entry of the matrix belongs to."""
    size = granularity.group_size or 1
    rows, columns = torch.meshgrid(torch.arange(shape[0]), torch.arange(shape[1]), indexing="ij")
    kind = granularity.kind
    row = {"tensor": 0 * rows, "column": 0 * rows, "column_group": rows // size}.get(kind, rows)
    column = {"tensor": 0 * columns, "row": 0 * columns, "row_group": columns // size}.get(kind, columns)
    return groups[row, column]


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_searched_range_is_the_best_of_all_shares_for_every_group(granularity: Granularity) -> None:
    x, weight = inputs_and_weight(1)
    hessian = x.t() @ x
    low, high = value_range(weight, granularity)

    def errors(share: float) -> torch.Tensor:
        parameters = parameters_from_range(low * share, high * share, GRID, scale_dtype(granularity))
        return group_errors(fake_quantize(weight, parameters, GRID, granularity) - weight, hessian, granularity)

    best = torch.stack([errors(share) for share in SHARES]).amin(dim=0)
    found = searched_parameters(weight, hessian, GRID, granularity)
    given = group_errors(fake_quantize(weight, found, GRID, granularity) - weight, hessian, granularity)
    torch.testing.assert_close(given, best)
    assert float(given.sum()) < float(errors(1.0).sum())


@pytest.mark.parametrize("granularity", [ROW, Granularity("row_group", 8), Granularity("column_group", 5)])
def test_some_rows_are_searched_as_in_the_whole(monkeypatch: pytest.MonkeyPatch, granularity: Granularity) -> None:
    x, weight = inputs_and_weight(2)
    hessian = x.t() @ x
    whole = searched_parameters(weight, hessian, GRID, granularity)
    for rows in (slice(0, 5), slice(5, 12)):
        found, expected = (
            searched_parameters(weight[rows], hessian, GRID, granularity),
            whole.of_rows(rows, granularity),
        )
        assert_same(found, expected)
    monkeypatch.setattr("channelwise.methods.ranges.ROWS", 6)
    assert_same(searched_parameters(weight, hessian, GRID, granularity), whole)


def assert_same(found: Parameters, expected: Parameters) -> None:
    assert torch.equal(found.scale, expected.scale)
    assert found.zero_point is not None and expected.zero_point is not None
    assert torch.equal(found.zero_point, expected.zero_point)


@pytest.mark.parametrize("granularity", [COLUMN, Granularity("column_group", 70)])
def test_a_columns_cut_ranges_round_no_worse_than_its_whole_range(granularity: Granularity) -> None:
    column = torch.randn(200, 1, generator=torch.Generator().manual_seed(0))
    errors = []
    for parameters in (
        parameters_of(column, GRID, granularity),
        least_error_parameters(column, GRID, granularity, 0.8),
    ):
        error = (fake_quantize(column, parameters, GRID, granularity) - column).abs().pow(2.4)
        errors.append(torch.stack([part.sum() for part in error.split(granularity.group_size or len(column))]))
    assert bool((errors[1] <= errors[0]).all())
    assert bool((errors[1] < errors[0]).any())


def test_a_smallest_range_of_one_cuts_nothing() -> None:
    column = inputs_and_weight()[1][:, :1]
    whole, cut = parameters_of(column, GRID, COLUMN), least_error_parameters(column, GRID, COLUMN, 1.0)
    assert torch.equal(whole.scale, cut.scale)
    assert whole.zero_point is not None and cut.zero_point is not None
    assert torch.equal(whole.zero_point, cut.zero_point)
