"""The search of formats and ranges, against brute force."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from channelwise.methods import format_problem, format_search
from channelwise.methods.format_problem import LayerProblem, WeightFormat, input_format, row_scale
from channelwise.methods.format_search import InputSearch, WeightSearch, best_rows, ratio_grid, search_ratios
from channelwise.methods.site import Importance
from channelwise.numerics.grids import FloatGrid, bias_for_largest, float_grids

E2M1 = FloatGrid(2, 1)
FOUR_BITS = float_grids(4)


def problem(
    seed: int = 0, tokens: int = 96, channels: int = 24, rows: int = 10, weighted: bool = False
) -> LayerProblem:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.exp(1.5 * torch.randn(channels, generator=generator))
    x = torch.randn(tokens, channels, generator=generator) * spread
    weight = torch.randn(rows, channels, generator=generator)
    importance = Importance(torch.rand(tokens, generator=generator), torch.rand(rows, generator=generator))
    return LayerProblem(x, weight, x.abs().amax(dim=0), importance if weighted else None)


def exact_loss(p: LayerProblem, inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Σ over tokens, in float64, for each output feature."""
    error = p.inputs.double() @ p.weight.double().t() - inputs.double() @ weight.double().t()
    square = error.square()
    if p.importance is not None:
        square = square * p.importance.tokens.double()[:, None] * p.importance.outputs.double()
    return square.sum(dim=0)


def test_the_ratios_hold_one_and_the_papers_ends() -> None:
    ratios = ratio_grid(100)
    assert len(ratios) == 101
    assert float(ratios[0]) == pytest.approx(0.01) and float(ratios[-1]) == pytest.approx(1.2)
    assert int((ratios == 1.0).sum()) == 1
    assert bool((ratios.diff() > 0).all())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("grid", FOUR_BITS)
def test_weight_losses_differ_as_the_exact_output_errors_do(grid: FloatGrid, weighted: bool) -> None:
    p = problem(weighted=weighted)
    inputs = input_format(p.largest, E2M1, 0.8, pre_shift=True).quantized(p.inputs)
    ratios = torch.tensor([0.3, 0.7, 1.0, 1.2])[:, None].expand(-1, 10)
    found = WeightSearch(p, inputs).losses(grid, ratios)
    exact = torch.stack(
        [
            exact_loss(p, inputs, WeightFormat(grid, row_scale(p.weight, grid, r[:, None])).quantized(p.weight))
            for r in ratios
        ]
    )
    scale = exact.max()
    torch.testing.assert_close((found - found[0]) / scale, (exact - exact[0]) / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("channels", "rows"), [(24, 40), (40, 24)])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("pre_shift", [False, True])
@pytest.mark.parametrize("by_bytes", [False, True])
@pytest.mark.parametrize("grid", FOUR_BITS, ids=str)
def test_input_losses_are_the_exact_output_errors(
    monkeypatch: pytest.MonkeyPatch, grid: FloatGrid, by_bytes: bool, channels: int, rows: int, weighted: bool,
    pre_shift: bool,
) -> None:  # fmt: skip
    """All ways of computing them: in integers, by the channels' Gram matrix, by the outputs where those are fewer."""
    if not by_bytes:
        monkeypatch.setattr(format_search, "integers_are_fast", lambda: False)
    p = problem(channels=channels, rows=rows, weighted=weighted)
    weight = WeightFormat(E2M1, row_scale(p.weight, E2M1, 1.0))
    ratios = torch.tensor([0.2, 0.6, 1.0])
    found = InputSearch(p, weight, pre_shift).losses(grid, ratios)
    rounded = weight.quantized(p.weight)
    exact = torch.stack(
        [
            exact_loss(p, input_format(p.largest, grid, float(r), pre_shift).quantized(p.inputs), rounded).sum()
            for r in ratios
        ]
    )
    torch.testing.assert_close(found / exact.max(), exact / exact.max(), rtol=0, atol=1e-5)


def test_more_outputs_than_memory_may_take_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem(rows=40)
    monkeypatch.setattr(format_search, "LARGEST_OUTPUTS", p.inputs.shape[0] * 40 - 1)
    InputSearch(p, WeightFormat(E2M1, row_scale(p.weight, E2M1, 1.0)), True).losses(E2M1, torch.tensor([0.5, 1.0]))
    assert "outputs" not in vars(p)


def test_some_tokens_at_a_time_give_the_same_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem(weighted=True)
    search = InputSearch(p, WeightFormat(E2M1, row_scale(p.weight, E2M1, 1.0)), True)
    at_once = search.losses(E2M1, torch.tensor([0.5, 1.0]))
    monkeypatch.setattr(format_problem, "CHUNK", 70)
    torch.testing.assert_close(search.losses(E2M1, torch.tensor([0.5, 1.0])), at_once, rtol=1e-6, atol=0)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_full_search_of_every_row_equals_brute_force(weighted: bool) -> None:
    p = problem(seed=3, weighted=weighted)
    ratios = ratio_grid(40)
    search = WeightSearch(p, p.inputs)
    start = torch.full((10,), int((ratios == 1).nonzero()[0]))
    places, _ = search_ratios(lambda indices: search.losses(E2M1, ratios[indices]), len(ratios), (1,), start)
    for row in range(10):
        importance = p.importance and Importance(p.importance.tokens, p.importance.outputs[row : row + 1])
        one = LayerProblem(p.inputs, p.weight[row : row + 1], p.largest, importance)
        losses = [
            float(
                exact_loss(
                    one, p.inputs, WeightFormat(E2M1, row_scale(one.weight, E2M1, float(r))).quantized(one.weight)
                )
            )
            for r in ratios
        ]
        assert losses[int(places[row])] == pytest.approx(min(losses), rel=1e-5)


@given(st.integers(0, 10_000))
def test_a_finer_search_never_ends_higher(seed: int) -> None:
    """Coarse to fine begins at the start and keeps the best, whatever the function looks like."""
    values = torch.rand(50, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    start = torch.tensor([7, 20, 49])

    def losses(indices: torch.Tensor) -> torch.Tensor:
        return values.gather(0, indices)

    coarse = search_ratios(losses, 50, (8,), start)[1]
    fine = search_ratios(losses, 50, (8, 4, 2, 1), start)[1]
    full_places, full = search_ratios(losses, 50, (1,), start)
    assert bool((fine <= coarse).all()) and bool((full <= fine).all())
    assert bool((coarse <= values.gather(0, start[None])[0]).all())
    assert torch.equal(full, values.min(dim=0).values)
    assert torch.equal(values.gather(0, full_places[None])[0], full)


@given(st.integers(1, 3), st.floats(0.05, 1.2), st.integers(0, 1000))
def test_exponents_lie_within_the_format_and_are_zero_at_the_largest_channel(e: int, ratio: float, seed: int) -> None:
    grid = FloatGrid(e, 3 - e)
    largest = torch.exp(3 * torch.randn(20, generator=torch.Generator().manual_seed(seed)))
    exponents = input_format(largest, grid, ratio, pre_shift=True).exponents
    assert exponents is not None
    assert int(exponents.min()) >= 0 and int(exponents.max()) <= 2**e - 1
    assert int(input_format(largest, grid, 1.0, pre_shift=True).exponents[largest.argmax()]) == 0


def test_at_ratio_one_the_exponents_are_the_papers() -> None:
    """ρ = min_j b̃_j and b_j = clip(round(b̃_j − ρ), 0, 2^e − 1), eq. 10–12."""
    largest = torch.tensor([80.0, 41.0, 9.0, 1.0, 0.01])
    bias = bias_for_largest(E2M1, largest)
    found = input_format(largest, E2M1, 1.0, pre_shift=True)
    assert found.exponents.tolist() == torch.clamp(torch.round(bias - bias.min()), 0, 3).tolist()
    assert -float(torch.log2(found.scale)) == pytest.approx(float(bias.min()), abs=1e-5)


def test_the_pre_shift_gives_small_channels_small_steps() -> None:
    p = problem(seed=1)
    plain = input_format(p.largest, E2M1, 1.0, pre_shift=False).quantized(p.inputs)
    shifted = input_format(p.largest, E2M1, 1.0, pre_shift=True).quantized(p.inputs)
    small = p.largest < p.largest.amax() / 8
    assert bool(small.any())
    error, plain_error = (shifted - p.inputs)[:, small], (plain - p.inputs)[:, small]
    assert float(error.norm()) < 0.5 * float(plain_error.norm())


def test_a_channel_of_zeros_does_not_widen_the_exponents() -> None:
    largest = torch.tensor([8.0, 4.0, 0.0])
    assert input_format(largest, FloatGrid(3, 0), 1.0, pre_shift=True).exponents.tolist() == [0, 1, 1]


@pytest.mark.parametrize("grid", FOUR_BITS)
def test_inputs_of_zeros_stay_zeros(grid: FloatGrid) -> None:
    x = torch.zeros(3, 4)
    found = input_format(x.abs().amax(dim=0), grid, 1.0, pre_shift=True)
    assert torch.equal(found.quantized(x), x)


def test_an_embeddings_rows_are_searched_one_by_one() -> None:
    table = torch.randn(60, 32, generator=torch.Generator().manual_seed(0))
    found = best_rows(table, FOUR_BITS)
    error = (found.quantized(table) - table).square().sum(dim=1)
    plain = (WeightFormat(found.grid, row_scale(table, found.grid, 1.0)).quantized(table) - table).square().sum(dim=1)
    assert bool((error <= plain).all())
    assert float(error.sum()) < 0.95 * float(plain.sum())
