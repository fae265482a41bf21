"""Operations that are recorded once: the same numbers, whatever is replayed."""

from collections.abc import Callable

import pytest
import torch

from channelwise.methods.gptq import Gptq, factor, gptq_
from channelwise.methods.repeated import Repeated, recorder_for
from channelwise.numerics.granularity import Granularity
from channelwise.numerics.grids import Grid
from tests.methods.test_gptq import GRANULARITIES, GRIDS, correlated_inputs, hessian_of, random_weight


class Tape:
    """Records like a GPU, but in the host's memory: nothing is computed before the replay, which is counted."""

    def __init__(self) -> None:
        self.recorded, self.replayed = 0, 0

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            run()

        return replay


def doubled(total: torch.Tensor, step: torch.Tensor) -> tuple[torch.Tensor, ...]:
    total.add_(step)
    return (total * 2,)


def test_every_call_gives_what_the_function_gives_and_changes_what_it_changes() -> None:
    tape = Tape()
    repeated = Repeated(doubled, tape)
    results = []
    for step in range(5):
        total = torch.full((3,), 10.0)
        (result,) = repeated(total, torch.tensor([float(step)]))
        results.append(result)
        assert torch.equal(total, torch.full((3,), 10.0 + step))
    # All are looked at in the end: a result is not overwritten by the next call.
    assert [result.tolist() for result in results] == [[2 * (10.0 + step)] * 3 for step in range(5)]
    assert (tape.recorded, tape.replayed) == (1, 4)


def test_inputs_of_another_shape_are_computed_as_usual() -> None:
    tape = Tape()
    repeated = Repeated(doubled, tape)
    for size in (3, 3, 2, 3):
        total = torch.zeros(size)
        (result,) = repeated(total, torch.ones(1))
        assert torch.equal(result, torch.full((size,), 2.0))
        assert torch.equal(total, torch.ones(size))
    assert (tape.recorded, tape.replayed) == (1, 2)


def test_nothing_is_recorded_on_the_cpu() -> None:
    assert recorder_for(torch.device("cpu")) is None
    assert recorder_for(torch.device("cuda")) is not None


@pytest.mark.parametrize("smallest_range", [1.0, 0.85])
@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_gptq_gives_the_same_codes_from_a_recording(
    monkeypatch: pytest.MonkeyPatch, grid: Grid, granularity: Granularity, smallest_range: float
) -> None:
    # Five blocks of 4 columns, of which the first is computed as usual, and one of 2.
    options = Gptq(block=4, smallest_range=smallest_range)
    weight, found = random_weight(0), factor(hessian_of(correlated_inputs(0)).matrix, Gptq(), "layer")
    expected, plain = gptq_(weight.clone(), found, grid, granularity, options)
    tape = Tape()
    monkeypatch.setattr("channelwise.methods.gptq.recorder_for", lambda device: tape)
    codes, parameters = gptq_(weight.clone(), found, grid, granularity, options)
    assert (tape.recorded, tape.replayed) == (1, 4)
    assert torch.equal(codes, expected)
    assert torch.equal(parameters.scale, plain.scale)
    if plain.zero_point is not None and parameters.zero_point is not None:
        assert torch.equal(parameters.zero_point, plain.zero_point)


def test_the_strides_of_what_is_given_do_not_matter() -> None:
    tape = Tape()
    repeated = Repeated(doubled, tape)
    for step in range(3):
        total = torch.arange(12.0).view(3, 4).t()
        (result,) = repeated(total, torch.full((1,), float(step)))
        assert torch.equal(result, 2 * (torch.arange(12.0).view(3, 4).t() + step))
        assert torch.equal(total, torch.arange(12.0).view(3, 4).t() + step)
