"""A weight's rows divided over ranks: what the parts are put together to is what one rank has."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from channelwise.engine.rows import RowShare
from channelwise.engine.world import World
from channelwise.numerics.granularity import COLUMN, ROW, TENSOR, Granularity
from channelwise.numerics.grids import FloatGrid, Grid, IntegerGrid
from channelwise.numerics.quantizer import Parameters, encode, parameters_of

_Result = TypeVar("_Result")

DIVIDED = [ROW, Granularity("row_group", 3), Granularity("column_group", 4), Granularity("column_group", 5)]
WHOLE = [TENSOR, COLUMN]
GRIDS = [
    IntegerGrid(8),
    IntegerGrid(3, symmetric=False),
    IntegerGrid(8, symmetric=False),
    FloatGrid(2, 1),
    FloatGrid(5, 2),
]


class Meeting:
    """Where the threads that stand for ranks exchange what they have."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=30)
        self.parts: list[object] = [None] * size


@dataclass(frozen=True)
class Thread(World):
    """A rank that is a thread of this process."""

    meeting: Meeting | None = None

    def _all(self, own: object) -> list:
        assert self.meeting is not None
        self.meeting.parts[self.rank] = own
        self.meeting.barrier.wait()
        parts = list(self.meeting.parts)
        self.meeting.barrier.wait()
        return parts

    def joined(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat(self._all(tensor))

    def totals(self, numbers: Sequence[float]) -> list[float]:
        return [sum(parts) for parts in zip(*self._all(list(numbers)), strict=True)]


def by_ranks(size: int, work: Callable[[World], _Result]) -> list[_Result]:
    """What the work gives on each of so many ranks."""
    meeting, results = Meeting(size), [None] * size

    def run(rank: int) -> None:
        try:
            results[rank] = work(Thread(rank, size, meeting=meeting))
        except BaseException:
            meeting.barrier.abort()
            raise

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert None not in results
    return results


def weight(rows: int, columns: int = 7) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))


def rounded(world: World, matrix: torch.Tensor, grid: Grid, granularity: Granularity) -> tuple[torch.Tensor, ...]:
    """Codes, scales and zero points of a weight, each rank rounding its rows."""
    share = RowShare.of(world, len(matrix), granularity)
    own = share.of_weight(matrix)
    parameters = parameters_of(own, grid, granularity)
    codes = share.joined_rows(encode(own, parameters, grid, granularity))
    joined = share.joined_parameters(parameters)
    return codes, joined.scale, torch.zeros(0) if joined.zero_point is None else joined.zero_point


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("granularity", [*DIVIDED, *WHOLE], ids=str)
@pytest.mark.parametrize(("size", "rows"), [(2, 16), (2, 23), (3, 31), (2, 1), (3, 5)])
def test_the_parts_together_are_what_one_rank_has(size: int, rows: int, granularity: Granularity, grid: Grid) -> None:
    whole = rounded(World(), weight(rows), grid, granularity)
    for parts in by_ranks(size, lambda world: rounded(world, weight(rows), grid, granularity)):
        for part, expected in zip(parts, whole, strict=True):
            assert part.dtype == expected.dtype
            assert torch.equal(part, expected)


@pytest.mark.parametrize("granularity", DIVIDED, ids=str)
def test_totals_are_those_of_all_rows(granularity: Granularity) -> None:
    matrix = weight(24)

    def error(world: World) -> float:
        share = RowShare.of(world, len(matrix), granularity)
        return share.total(float(share.of_weight(matrix).double().abs().sum()))

    for total in by_ranks(2, error):
        assert total == pytest.approx(float(matrix.double().abs().sum()), rel=1e-12)


@pytest.mark.parametrize("granularity", WHOLE, ids=str)
def test_what_shares_scales_over_all_rows_is_not_divided(granularity: Granularity) -> None:
    matrix = weight(1000)
    for rank in range(2):
        share = RowShare.of(World(rank, 2), len(matrix), granularity)
        assert share.whole
        assert share.of_weight(matrix) is matrix
        assert share.total(1.5) == 1.5


@pytest.mark.parametrize("granularity", DIVIDED, ids=str)
def test_few_rows_are_not_divided(granularity: Granularity) -> None:
    size = granularity.group_size if granularity.kind == "column_group" else 1
    assert RowShare.of(World(0, 2), 4 * size - 1, granularity).whole
    assert not RowShare.of(World(0, 2), 4 * size, granularity).whole


@given(
    size=st.integers(1, 9),
    rows=st.integers(1, 200),
    group=st.integers(1, 20),
    kind=st.sampled_from(["row", "row_group", "column_group"]),
)
def test_every_row_has_one_rank_and_no_group_is_cut(size: int, rows: int, group: int, kind: str) -> None:
    granularity = Granularity(kind, None if kind == "row" else group)
    shares = [RowShare.of(World(rank, size), rows, granularity) for rank in range(size)]
    if shares[0].whole:
        assert all(share.rows == slice(0, rows) for share in shares)
        return
    ends = [share.rows.stop for share in shares]
    assert [share.rows.start for share in shares] == [0, *ends[:-1]]
    assert ends[-1] == rows
    assert kind != "column_group" or all(end % group == 0 for end in ends[:-1])


@given(rows=st.integers(1, 60), rank=st.integers(0, 1), granularity=st.sampled_from(DIVIDED))
def test_parameters_of_a_share_are_those_of_its_rows(rows: int, rank: int, granularity: Granularity) -> None:
    grid, matrix = IntegerGrid(4, symmetric=False), weight(rows)
    share = RowShare.of(World(rank, 2), rows, granularity)
    whole = parameters_of(matrix, grid, granularity)
    part = share.of_parameters(whole)
    assert part is not None
    assert part.zero_point is not None
    own = parameters_of(share.of_weight(matrix), grid, granularity)
    assert torch.equal(part.scale, own.scale)
    assert own.zero_point is not None
    assert torch.equal(part.zero_point, own.zero_point)


def test_no_parameters_stay_none() -> None:
    assert RowShare.of(World(1, 2), 100, ROW).of_parameters(None) is None


def test_parameters_without_zero_points_are_joined() -> None:
    def joined(world: World) -> Parameters:
        share = RowShare.of(world, 4, ROW)
        return share.joined_parameters(Parameters(torch.full((2, 1), float(world.rank))))

    for found in by_ranks(2, joined):
        assert found.zero_point is None
        assert found.scale.tolist() == [[0.0], [0.0], [1.0], [1.0]]
