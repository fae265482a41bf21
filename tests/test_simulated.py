"""The simulated device refuses and counts what a real one does."""

from collections.abc import Callable

import pytest
import torch

from tests.simulated import DEVICE, Simulation, on_device

Work = Callable[[torch.Tensor], object]


def test_tensors_of_two_devices_do_not_meet_but_for_single_numbers(simulation: Simulation) -> None:
    x = on_device(torch.arange(6.0))
    assert x.device == (x + 1).device == DEVICE
    assert (x / torch.tensor(2.0)).tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    with pytest.raises(RuntimeError, match="tensors on cuda and cpu"):
        x + torch.ones(6)
    with pytest.raises(RuntimeError, match="tensors on cuda and cpu"):
        torch.zeros(6).add_(x)


@pytest.mark.parametrize(
    "work",
    [
        float,
        lambda x: bool((x > 0).all()),
        lambda x: x.reshape(1).tolist(),
        lambda x: x.cpu(),
        lambda x: x.reshape(1)[x.reshape(1) > 0],
        lambda x: torch.zeros(()).to(DEVICE),
        lambda x: x.reshape(1)[torch.zeros(1, dtype=torch.int64)],
        lambda x: torch.equal(x, x),
    ],
)
def test_what_reads_a_value_or_carries_it_over_makes_the_host_wait(simulation: Simulation, work: Work) -> None:
    work(on_device(torch.ones(())))
    assert simulation.waits.total() == 1


@pytest.mark.parametrize(
    "work",
    [
        lambda x: (x * 2).sum(dim=0).sqrt_(),
        lambda x: torch.where(x > 0, x, 0.0)[:2, None],
        lambda x: x[torch.arange(2, device=DEVICE)],
        lambda x: x.copy_(x + 1),
        lambda x: torch.zeros(2).to(DEVICE, non_blocking=True),
    ],
)
def test_what_stays_there_does_not(simulation: Simulation, work: Work) -> None:
    work(on_device(torch.ones(3, 2)))
    assert simulation.waits.total() == 0


def test_views_are_free_and_share_their_memory(simulation: Simulation) -> None:
    x = on_device(torch.zeros(2, 3))
    simulation.kernels.clear()
    view = x.t()[1:].unsqueeze(0)
    assert simulation.kernels.total() == 0
    view.add_(1)
    assert simulation.kernels.total() == 1
    assert x.tolist() == [[0.0, 1.0, 1.0], [0.0, 1.0, 1.0]]
