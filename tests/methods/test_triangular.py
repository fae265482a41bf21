"""The triangular factorization in the memory of the matrix: V D Vᵀ is the matrix, as far as float32 can say it."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Barrier
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from channelwise.methods import triangular
from channelwise.methods.gptq import Factor, Gptq, factor
from channelwise.methods.hessian import BLOCK, Hessian, output_error
from channelwise.methods.triangular import factor_below
from channelwise.numerics.transform import ChannelTransform

SIZE = 22
ROUNDING = 2.0**-24
"""Half the distance between 1 and the next float32."""


def positive_definite(seed: int, size: int = SIZE) -> torch.Tensor:
    """Float32 [size, size], of channels whose sizes differ a thousandfold."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3 * size, size, generator=generator) * 10 ** (3 * torch.rand(size, generator=generator))
    return x.t() @ x


def random_order(seed: int) -> torch.Tensor:
    return torch.randperm(SIZE, generator=torch.Generator().manual_seed(seed))


def effects(matrix: torch.Tensor) -> torch.Tensor:
    """V, float64, from what was written below the diagonal."""
    order = torch.arange(len(matrix))
    return Factor(matrix, order, 0.0).effects.double()


def assert_a_factor(v: torch.Tensor, d: torch.Tensor, expected: torch.Tensor) -> None:
    """V D Vᵀ is the expected float64 matrix but for the rounding of V's entries to float32."""
    assert torch.equal(v, v.triu())
    assert torch.equal(v.diagonal(), torch.ones(len(v), dtype=torch.float64))
    assert d.dtype == torch.float64
    size = expected.diagonal().sqrt()
    # Both of the factors' entries in a product are rounded; sums of products are at most those of the diagonal.
    bound = 2.01 * ROUNDING * size * size[:, None]
    assert bool(((v * d @ v.t() - expected).abs() <= bound).all())


@pytest.fixture(params=[1, 2, 7, 11, 21, 22, 100])
def panel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The width of a panel; its rows are taken four at a time."""
    monkeypatch.setattr(triangular, "PANEL", request.param)
    monkeypatch.setattr(triangular, "ROWS", 4)
    width: int = request.param
    return width


@pytest.mark.usefixtures("panel")
def test_the_factor_takes_the_matrix_apart() -> None:
    for seed in range(5):
        matrix, order = positive_definite(seed), random_order(seed)
        damped = matrix.double()[order][:, order]
        damped.diagonal().mul_(1.01)
        d = factor_below(matrix, order, damped.diagonal())
        assert d is not None
        assert_a_factor(effects(matrix), d, damped)


@pytest.mark.usefixtures("panel")
def test_what_is_on_and_above_the_diagonal_is_kept_and_nothing_else_is_read() -> None:
    matrix, order = positive_definite(0), random_order(0)
    above = matrix.triu()
    poisoned = above + torch.full_like(matrix, 1e30).tril(-1)
    diagonal = matrix.diagonal().double()[order]
    first, second = factor_below(matrix, order, diagonal), factor_below(poisoned, order, diagonal)
    assert first is not None and second is not None
    assert torch.equal(first, second)
    assert torch.equal(matrix, poisoned)
    assert torch.equal(matrix.triu(), above)


@pytest.mark.usefixtures("panel")
def test_an_entry_without_a_positive_diagonal_stands_alone() -> None:
    matrix, alone = positive_definite(0), [0, 9, 21]
    kept = [channel for channel in range(SIZE) if channel not in alone]
    matrix[alone, alone] = torch.tensor([0.0, -1.0, 0.0])
    expected = matrix.double()[kept][:, kept]
    d = factor_below(matrix, torch.arange(SIZE), matrix.diagonal().double().clamp(min=1.0))
    assert d is not None
    found = effects(matrix)
    assert torch.equal(found[alone], torch.eye(SIZE, dtype=torch.float64)[alone])
    assert torch.equal(found[:, alone], torch.eye(SIZE, dtype=torch.float64)[:, alone])
    assert torch.equal(d[alone], torch.ones(3, dtype=torch.float64))
    assert_a_factor(found[kept][:, kept], d[kept], expected)


@pytest.mark.parametrize("place", [0, 5, 6, 21])
@pytest.mark.usefixtures("panel")
def test_a_matrix_that_is_not_positive_definite_has_no_factor_until_its_diagonal_is_larger(place: int) -> None:
    matrix = positive_definite(0)
    diagonal = matrix.diagonal().double().clone()
    diagonal[place] *= 1e-3
    order = torch.arange(SIZE)
    assert factor_below(matrix, order, diagonal) is None
    damped = positive_definite(0).double()
    d = factor_below(matrix, order, damped.diagonal())
    assert d is not None
    assert_a_factor(effects(matrix), d, damped)


@dataclass
class Threads:
    """A rank among threads that divide the rows: shares as even as may be, some of them empty."""

    rank: int
    size: int
    barrier: Barrier
    board: dict[int, torch.Tensor] = field(default_factory=dict)

    def rows(self, count: int, multiple: int = 1) -> slice:
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def joined(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat(self._all(tensor))

    def maximum(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.stack(self._all(tensor)).amax(dim=0)

    def _all(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        self.board[self.rank] = tensor
        self.barrier.wait(timeout=60)
        found = [self.board[rank] for rank in range(self.size)]
        self.barrier.wait(timeout=60)
        return found


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_ranks_that_divide_the_rows_all_get_one_factor(panel: int, ranks: int) -> None:
    order, barrier, board = random_order(1), Barrier(ranks), {}
    damped = positive_definite(1).double()[order][:, order]

    def work(rank: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        matrix = positive_definite(1)
        return matrix, factor_below(matrix, order, damped.diagonal(), Threads(rank, ranks, barrier, board))

    with ThreadPoolExecutor(ranks) as threads:
        results = list(threads.map(work, range(ranks)))
    matrix, d = results[0]
    assert d is not None
    assert_a_factor(effects(matrix), d, damped)
    for other, others_d in results[1:]:
        assert others_d is not None
        assert torch.equal(other, matrix)
        assert torch.equal(others_d, d)


def test_a_failure_on_one_rank_is_one_on_all() -> None:
    class Failing(Threads):
        def maximum(self, tensor: torch.Tensor) -> torch.Tensor:
            return super().maximum(torch.ones_like(tensor) if self.rank == 1 else tensor)

    order, barrier, board = torch.arange(SIZE), Barrier(2), {}

    def work(rank: int) -> torch.Tensor | None:
        matrix = positive_definite(0)
        return factor_below(matrix, order, matrix.diagonal().double(), Failing(rank, 2, barrier, board))

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(work, range(2))) == [None, None]


class LargestStorage(TorchDispatchMode):
    """Keeps the bytes of the largest memory that any result of an operation lies in."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        results = function(*args, **(kwargs or {}))
        for result in results if isinstance(results, tuple | list) else [results]:
            if isinstance(result, torch.Tensor):
                given = any(isinstance(one, torch.Tensor) and same_memory(one, result) for one in args)
                self.bytes = max(self.bytes, 0 if given else result.untyped_storage().nbytes())
        return results


def same_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def test_no_step_makes_a_copy_of_a_hessian(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triangular, "PANEL", 64)
    monkeypatch.setattr(triangular, "ROWS", 64)
    channels = 4 * BLOCK
    matrix = torch.eye(channels) + 1e-4
    hessian = Hessian(matrix, torch.zeros(channels, dtype=torch.float64), 1)
    steps: list[tuple[Callable[[], object], float]] = [
        # Two panels of float64 as long as the matrix.
        (lambda: factor(matrix, Gptq(), "layer"), 2 * 2 * 64 / channels),
        # Blocks of float64 as long as the matrix.
        (
            lambda: hessian.transform_(ChannelTransform(torch.ones(channels), torch.ones(channels))),
            2 * BLOCK / channels,
        ),
        (lambda: output_error(hessian, torch.ones(8, channels)), 0.25),
        (lambda: output_error(hessian, torch.ones(8, channels, dtype=torch.float64)), 0.25),
    ]
    for step, share in steps:
        with LargestStorage() as largest:
            step()
        assert 0 < largest.bytes <= share * matrix.nbytes
