"""The triangular factorization in panels, against the library's Cholesky factor in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from channelwise.methods import triangular
from channelwise.methods.gptq import Gptq, factor
from channelwise.methods.hessian import BLOCK, Hessian, output_error
from channelwise.methods.triangular import unit_upper_factor
from channelwise.numerics.transform import ChannelTransform

SIZE = 22


def positive_definite(seed: int, size: int = SIZE) -> torch.Tensor:
    x = torch.randn(3 * size, size, generator=torch.Generator().manual_seed(seed))
    return x.t() @ x


def library(matrix: torch.Tensor) -> torch.Tensor:
    """V of V D Vᵀ in float64, from the lower factor of the reversed matrix."""
    lower = torch.linalg.cholesky(matrix.double().flip(0, 1))
    return (lower / lower.diagonal()).flip(0, 1)


@pytest.mark.parametrize("panel", [1, 2, 7, 11, 21, 22, 100])
def test_panels_of_any_height_give_the_librarys_factor(monkeypatch: pytest.MonkeyPatch, panel: int) -> None:
    monkeypatch.setattr(triangular, "PANEL", panel)
    for seed in range(5):
        matrix = positive_definite(seed)
        order = torch.randperm(SIZE, generator=torch.Generator().manual_seed(seed))
        diagonal = 1.1 * matrix.diagonal().double()[order]
        damped = matrix.double()[order][:, order]
        damped.diagonal().copy_(diagonal)
        found, exact = unit_upper_factor(matrix, order, diagonal), library(damped)
        assert found is not None
        assert found.dtype == torch.float32
        assert torch.equal(found, found.triu())
        assert torch.equal(found.diagonal(), torch.ones(SIZE))
        # Half a unit of float32, and what two stable float64 factorizations may differ by.
        stable = SIZE * float(torch.linalg.cond(damped)) * 2.0**-52
        assert bool(((found - exact).abs() <= 2.0**-24 * exact.abs() + stable).all())


@pytest.mark.parametrize("panel", [1, 7, 22])
def test_an_entry_without_a_positive_diagonal_stands_alone(monkeypatch: pytest.MonkeyPatch, panel: int) -> None:
    monkeypatch.setattr(triangular, "PANEL", panel)
    matrix, alone = positive_definite(0), [0, 9, 21]
    kept = [channel for channel in range(SIZE) if channel not in alone]
    matrix[alone, alone] = torch.tensor([0.0, -1.0, 0.0])
    found = unit_upper_factor(matrix, torch.arange(SIZE), matrix.diagonal().double().clamp(min=1.0))
    assert found is not None
    assert torch.equal(found[alone], torch.eye(SIZE)[alone])
    assert torch.equal(found[:, alone], torch.eye(SIZE)[:, alone])
    without = unit_upper_factor(matrix[kept][:, kept], torch.arange(len(kept)), matrix.diagonal().double()[kept])
    assert without is not None
    torch.testing.assert_close(found[kept][:, kept], without, rtol=2.0**-23, atol=1e-12)


@pytest.mark.parametrize("place", [0, 5, 6, 21])
@pytest.mark.parametrize("panel", [1, 7, 22])
def test_a_matrix_that_is_not_positive_definite_has_no_factor(
    monkeypatch: pytest.MonkeyPatch, panel: int, place: int
) -> None:
    monkeypatch.setattr(triangular, "PANEL", panel)
    matrix = positive_definite(0)
    diagonal = matrix.diagonal().double().clone()
    diagonal[place] *= 1e-3
    assert unit_upper_factor(matrix, torch.arange(SIZE), diagonal) is None


def test_the_matrix_is_left_alone() -> None:
    matrix = positive_definite(0)
    unit_upper_factor(matrix, torch.arange(SIZE), matrix.diagonal().double())
    assert torch.equal(matrix, positive_definite(0))


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


def test_no_step_makes_a_float64_copy_of_a_hessian(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triangular, "PANEL", 64)
    channels = 4 * BLOCK
    matrix = torch.eye(channels) + 1e-4
    hessian = Hessian(matrix, torch.zeros(channels, dtype=torch.float64), 1)
    steps: list[tuple[Callable[[], object], float]] = [
        # The result with one panel more than it needs.
        (lambda: factor(matrix, Gptq(), "layer"), 1 + 64 / channels),
        (lambda: hessian.transformed(ChannelTransform(torch.ones(channels), torch.ones(channels))), 1.0),
        (lambda: output_error(hessian, torch.ones(8, channels)), 0.25),
        (lambda: output_error(hessian, torch.ones(8, channels, dtype=torch.float64)), 0.25),
    ]
    for step, share in steps:
        with LargestStorage() as largest:
            step()
        assert 0 < largest.bytes <= share * matrix.nbytes
