import math
import operator
import pickle
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from channelwise.engine.world import ALONE, ToldByRankZero, World
from channelwise.errors import InputError, NumericalError
from tests.engine.ranks import run_ranks, started_ranks

SIZES = (2, 3)
DTYPES = (torch.bool, torch.uint8, torch.int16, torch.int64, torch.bfloat16, torch.float64, torch.float8_e4m3fn)


def worlds(size: int) -> list[World]:
    return [World(rank, size) for rank in range(size)]


def numbers(rank: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(rank))


# Division, in one process.


@given(st.lists(st.floats(0, 1e6), max_size=40), st.integers(1, 9))
def test_every_item_is_in_exactly_one_share_in_order(costs: list[float], size: int) -> None:
    shares = [world.share(costs) for world in worlds(size)]
    assert [item for share in shares for item in share] == list(range(len(costs)))


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=40), st.integers(1, 9))
def test_a_share_costs_at_most_its_part_and_one_item(costs: list[int], size: int) -> None:
    for world in worlds(size):
        cost = sum(costs[item] for item in world.share(costs))
        assert cost * size <= sum(costs) + max(costs) * size


def test_items_of_one_cost_are_shared_evenly() -> None:
    assert [len(world.share([2.5] * 8)) for world in worlds(4)] == [2, 2, 2, 2]
    assert [len(world.share([0.0] * 8)) for world in worlds(4)] == [2, 2, 2, 2]


@given(st.integers(0, 500), st.integers(1, 64), st.integers(1, 9))
def test_rows_are_cut_at_multiples_and_none_is_left_out(count: int, multiple: int, size: int) -> None:
    shares = [world.rows(count, multiple) for world in worlds(size)]
    assert shares[0].start == 0 and shares[-1].stop == count
    assert all(before.stop == after.start for before, after in pairwise(shares))
    assert all(share.start % multiple == 0 or share.start == count for share in shares)
    lengths = [len(range(count)[share]) for share in shares]
    assert max(lengths) <= math.ceil(math.ceil(count / multiple) / size) * multiple


@pytest.mark.parametrize("operation", ["total", "minimum", "maximum", "joined"])
def test_alone_a_tensor_comes_back_itself(operation: str) -> None:
    tensor = torch.ones(3)
    assert operator.methodcaller(operation, tensor)(ALONE) is tensor


def test_alone_everything_is_ones_own() -> None:
    thing = object()
    assert ALONE.gathered(thing)[0] is thing
    assert ALONE.totals([0.1, 2]) == [0.1, 2]
    assert (ALONE.share([1.0, 5.0]), ALONE.rows(7, 4)) == (range(2), slice(0, 7))
    ALONE.barrier()
    with pytest.raises(InputError, match="as it is"), ALONE.agree():
        raise InputError("as it is")


# Exchange, between processes: what each rank returns is compared with the definition here.


def exchange(world: World) -> dict[str, Any]:
    own = numbers(world.rank, 5, 3)
    strided = own.t()
    nan = torch.tensor([1.0, torch.nan if world.rank == 1 else 0.0])
    summed = own.clone()
    count = (torch.arange(2**24 + 7) % 1000).float()
    return {
        "float total": world.total(own),
        "argument": own,
        "long total": world.total(torch.full((2,), 2**40 + world.rank)),
        "half total": world.total(own.bfloat16()),
        "strided total": world.total(strided),
        "scalar total": world.total(torch.tensor(world.rank, dtype=torch.float64)),
        "large total is exact": torch.equal(
            world.total(count + world.rank), world.size * count + sum(range(world.size))
        ),
        "in place": world.total(summed, in_place=True) is summed and summed,
        "minimum": world.minimum(own),
        "maximum": world.maximum(strided),
        "nan": (world.minimum(nan), world.maximum(nan)),
        "totals": world.totals([0.1 * (world.rank + 1), 1e16 if world.rank == 0 else 1.0]),
        "no totals": world.totals([]),
        "joined": [world.joined(part(world.rank, dtype)) for dtype in DTYPES],
        "joined nothing": world.joined(torch.empty(0, 4)),
        "gathered": world.gathered({"rank": world.rank, "names": ["x"] * world.rank}),
    }


def part(rank: int, dtype: torch.dtype) -> torch.Tensor:
    """Rank 1 has nothing; the others have different lengths, not contiguous."""
    length = 0 if rank == 1 else 2 * rank + 3
    return (torch.arange(2 * length).reshape(2, length).t() + rank).to(dtype)


@pytest.fixture(scope="module", params=SIZES)
def exchanged(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return run_ranks(exchange, request.param)


def test_all_ranks_have_the_same_bits(exchanged: list[dict[str, Any]]) -> None:
    common = [{key: value for key, value in result.items() if key != "argument"} for result in exchanged]
    assert len({pickle.dumps(torch.utils._pytree.tree_map(bits, result)) for result in common}) == 1


def bits(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    raw = value.contiguous().view(-1).view(torch.uint8).tolist()
    return str(value.dtype), tuple(value.shape), raw


def test_totals_are_sums_over_the_ranks(exchanged: list[dict[str, Any]]) -> None:
    size, result = len(exchanged), exchanged[0]
    ones = [numbers(rank, 5, 3) for rank in range(size)]
    # Two and three numbers have one sum up to the order of additions: at most two roundings of float32.
    torch.testing.assert_close(result["float total"], sum(ones), rtol=2**-22, atol=2**-22)
    torch.testing.assert_close(result["strided total"], result["float total"].t(), rtol=2**-22, atol=2**-22)
    assert torch.equal(result["in place"], result["float total"])
    assert result["long total"].tolist() == [size * 2**40 + sum(range(size))] * 2
    assert result["scalar total"].shape == () and result["scalar total"] == sum(range(size))
    assert result["half total"].dtype == torch.bfloat16
    halves = sum(one.bfloat16().float() for one in ones)
    torch.testing.assert_close(result["half total"].float(), halves, rtol=2**-7, atol=2**-22)


def test_a_total_leaves_its_argument_alone(exchanged: list[dict[str, Any]]) -> None:
    for rank, result in enumerate(exchanged):
        assert torch.equal(result["argument"], numbers(rank, 5, 3))


def test_a_tensor_beyond_one_piece_is_summed_whole(exchanged: list[dict[str, Any]]) -> None:
    assert exchanged[0]["large total is exact"]


def test_minimum_and_maximum_are_those_of_all_ranks(exchanged: list[dict[str, Any]]) -> None:
    ones = torch.stack([numbers(rank, 5, 3) for rank in range(len(exchanged))])
    assert torch.equal(exchanged[0]["minimum"], ones.amin(dim=0))
    assert torch.equal(exchanged[0]["maximum"], ones.amax(dim=0).t())


def test_minimum_and_maximum_do_not_hide_nan(exchanged: list[dict[str, Any]]) -> None:
    for extreme in exchanged[0]["nan"]:
        assert extreme[0] == 1.0 and extreme[1].isnan()


def test_numbers_are_added_in_float64_in_the_order_of_the_ranks(exchanged: list[dict[str, Any]]) -> None:
    size = len(exchanged)
    assert exchanged[0]["totals"] == [sum(0.1 * (rank + 1) for rank in range(size)), sum([1e16] + [1.0] * (size - 1))]
    assert exchanged[0]["no totals"] == []


def test_parts_of_any_dtype_and_length_are_joined(exchanged: list[dict[str, Any]]) -> None:
    for dtype, joined in zip(DTYPES, exchanged[0]["joined"], strict=True):
        expected = torch.cat([part(rank, dtype).view(-1, 2) for rank in range(len(exchanged))])
        assert joined.dtype == dtype
        assert torch.equal(joined.double(), expected.double())
    assert exchanged[0]["joined nothing"].shape == (0, 4)


def test_things_are_gathered_in_order(exchanged: list[dict[str, Any]]) -> None:
    assert exchanged[0]["gathered"] == [{"rank": rank, "names": ["x"] * rank} for rank in range(len(exchanged))]


# Agreement.


class AwkwardError(InputError):
    def __init__(self, message: str, unpicklable: Callable[[], None]) -> None:
        super().__init__(message)
        self.unpicklable = unpicklable


def disagree(world: World, failing: tuple[int, ...], awkward: bool) -> None:
    with world.agree():
        pass
    with world.agree():
        if world.rank in failing:
            message = f"bad input on {world.rank}"
            raise AwkwardError(message, lambda: None) if awkward else NumericalError(message)


@pytest.mark.parametrize(("failing", "awkward"), [((0, 2), False), ((1, 2), False), ((2,), True)])
def test_bad_input_on_one_rank_is_told_once_and_ends_all(failing: tuple[int, ...], awkward: bool) -> None:
    with started_ranks(disagree, 3, failing, awkward) as ranks:
        ended = [ranks.ended(rank) for rank in range(3)]
    kind = InputError if awkward else NumericalError
    assert ended[0].stderr == f"{kind.__name__}: bad input on {failing[0]}\n"
    assert all(end.stderr.startswith(ToldByRankZero.__name__) for end in ended[1:])
    assert [end.status for end in ended] == [2, 2, 2]


def test_what_only_this_rank_tells_is_no_error_line_on_the_others() -> None:
    assert ToldByRankZero.quiet and issubclass(ToldByRankZero, InputError)
