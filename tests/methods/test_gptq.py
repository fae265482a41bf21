"""GPTQ (arXiv 2210.17323) along rows and along columns (methods.md §4)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from channelwise.errors import NumericalError
from channelwise.methods.gptq import Factor, Gptq, factor, gptq_
from channelwise.methods.hessian import Hessian, output_error
from channelwise.numerics.granularity import COLUMN, ROW, TENSOR, Granularity, expand, parameter_shape
from channelwise.numerics.grids import FloatGrid, Grid, IntegerGrid
from channelwise.numerics.quantizer import Parameters, decode, encode, fake_quantize, parameters_of

GRIDS = [IntegerGrid(4), IntegerGrid(3, symmetric=False), FloatGrid(2, 1), FloatGrid(1, 2)]
# The group sizes divide neither the 13 rows nor the 22 columns of the weights below.
FIXED = [TENSOR, ROW, Granularity("row_group", 5)]
IN_TURN = [COLUMN, Granularity("column_group", 4)]
GRANULARITIES = FIXED + IN_TURN


def correlated_inputs(seed: int, tokens: int = 200, channels: int = 22) -> torch.Tensor:
    """Float32 [tokens, channels]: a few common causes, noise, and channels of unequal size."""
    generator = torch.Generator().manual_seed(seed)
    causes = torch.randn(tokens, channels // 3, generator=generator)
    mixing = torch.randn(channels // 3, channels, generator=generator)
    noise = torch.randn(tokens, channels, generator=generator)
    return (causes @ mixing + 0.3 * noise) * torch.exp(torch.randn(channels, generator=generator))


def hessian_of(x: torch.Tensor) -> Hessian:
    wide = x.double()
    return Hessian((wide.t() @ wide).float(), wide.sum(dim=0), len(x))


def random_weight(seed: int, rows: int = 13, columns: int = 22) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed + 10_000))


def solve(
    weight: torch.Tensor, matrix: torch.Tensor, grid: Grid, granularity: Granularity, options: Gptq
) -> tuple[torch.Tensor, Parameters]:
    # The factor takes the memory below the diagonal, and the matrix is often looked at again.
    return gptq_(weight.clone(), factor(matrix.clone(), options, "layer"), grid, granularity, options)


def nearest(weight: torch.Tensor, grid: Grid, granularity: Granularity) -> tuple[torch.Tensor, Parameters]:
    parameters = parameters_of(weight, grid, granularity)
    return encode(weight, parameters, grid, granularity), parameters


def textbook(
    weight: torch.Tensor, matrix: torch.Tensor, grid: Grid, granularity: Granularity, options: Gptq
) -> torch.Tensor:
    """The rounded weight by the paper's eq. 2, the inverse of the remaining Hessian anew for each column, in float64.

    Column q is rounded, and what remains is updated by −(w_q − ŵ_q) / [H⁻¹]_qq · [H⁻¹]_q,:.
    """
    shape = (len(weight), weight.shape[1])
    wide, damped = weight.double().clone(), matrix.double()
    damped = damped + options.damping * damped.diagonal().mean() * torch.eye(len(damped), dtype=torch.float64)
    order = list(range(len(damped)))
    if options.act_order:
        order.sort(key=lambda channel: -float(matrix[channel, channel]))
    fixed = parameters_of(weight, grid, granularity) if granularity in FIXED else None
    result = torch.empty(shape)
    for turn, channel in enumerate(order):
        left = order[turn:]
        inverse = torch.linalg.inv(damped[left][:, left])
        column = wide[:, channel].float()
        if fixed is None:
            size = granularity.group_size or len(column)
            parts = [part[:, None] for part in column.split(size)]
            rounded = torch.cat(
                [fake_quantize(part, parameters_of(part, grid, granularity), grid, granularity) for part in parts]
            )
            result[:, channel] = rounded[:, 0]
        else:
            scale = expand(fixed.scale, shape, granularity).expand(shape)[:, channel, None]
            zero = None
            if fixed.zero_point is not None:
                zero = expand(fixed.zero_point, shape, granularity).expand(shape)[:, channel, None]
            result[:, channel] = fake_quantize(column[:, None], Parameters(scale, zero), grid, ROW)[:, 0]
        error = wide[:, channel] - result[:, channel].double()
        wide[:, left] -= torch.outer(error / inverse[0, 0], inverse[0])
    return result


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_rounded_weight_is_that_of_the_paper_step_by_step(
    grid: Grid, granularity: Granularity, act_order: bool
) -> None:
    # Seeds are fixed: a number that float32 and float64 put on two sides of a tie would rightly differ.
    options = Gptq(act_order=act_order, block=8)
    for seed in range(3):
        weight, matrix = random_weight(seed), hessian_of(correlated_inputs(seed)).matrix
        codes, parameters = solve(weight, matrix, grid, granularity, options)
        expected = textbook(weight, matrix, grid, granularity, options)
        # Scales that follow from compensated values differ by the float32 rounding of those; a code off by one
        # would differ by a tenth of the largest weight.
        torch.testing.assert_close(decode(codes, parameters, grid, granularity), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("block", [1, 2, 7, 21, 1000])
@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
def test_the_block_does_not_change_the_codes(granularity: Granularity, block: int) -> None:
    # Seeds are fixed for the same reason as above.
    grid = IntegerGrid(4)
    for seed in range(3):
        weight, matrix = random_weight(seed), hessian_of(correlated_inputs(seed)).matrix
        whole, _ = solve(weight, matrix, grid, granularity, Gptq(block=22))
        blocked, _ = solve(weight, matrix, grid, granularity, Gptq(block=block))
        assert torch.equal(blocked, whole)


shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))
granularities = st.one_of(
    st.sampled_from([TENSOR, ROW, COLUMN]),
    st.builds(Granularity, st.sampled_from(["row_group", "column_group"]), st.integers(1, 10)),
)
grids = st.one_of(
    st.builds(IntegerGrid, st.integers(2, 8), st.booleans()),
    st.sampled_from([FloatGrid(2, 1), FloatGrid(1, 2), FloatGrid(3, 0), FloatGrid(4, 3)]),
)
configurations = st.builds(Gptq, block=st.integers(1, 10), act_order=st.booleans())


@given(st.integers(0, 1000), shapes, grids, granularities, configurations)
def test_with_a_diagonal_hessian_gptq_is_rounding_to_nearest(
    seed: int, shape: tuple[int, int], grid: Grid, granularity: Granularity, options: Gptq
) -> None:
    weight = random_weight(seed, *shape)
    matrix = torch.diag(torch.rand(shape[1], generator=torch.Generator().manual_seed(seed)))
    codes, parameters = solve(weight, matrix, grid, granularity, options)
    expected, plain = nearest(weight, grid, granularity)
    assert torch.equal(codes, expected)
    assert torch.equal(parameters.scale, plain.scale)
    assert (parameters.zero_point is None) == (plain.zero_point is None)
    if parameters.zero_point is not None and plain.zero_point is not None:
        assert torch.equal(parameters.zero_point, plain.zero_point)


@given(st.integers(0, 1000), shapes, grids, granularities, configurations)
def test_codes_lie_on_the_grid_and_parameters_have_their_shape(
    seed: int, shape: tuple[int, int], grid: Grid, granularity: Granularity, options: Gptq
) -> None:
    weight = random_weight(seed, *shape)
    matrix = hessian_of(correlated_inputs(seed, tokens=4, channels=shape[1] + 3)[:, 3:]).matrix
    codes, parameters = solve(weight, matrix, grid, granularity, options)
    assert codes.dtype == torch.int16
    assert tuple(codes.shape) == shape
    assert grid.lowest <= int(codes.amin()) and int(codes.amax()) <= grid.highest
    assert tuple(parameters.scale.shape) == parameter_shape(shape, granularity)
    assert bool((parameters.scale > 0).all())
    if parameters.zero_point is not None:
        assert parameters.zero_point.shape == parameters.scale.shape


@given(st.integers(0, 1000), grids, granularities, configurations, st.integers(-8, 8))
def test_the_unit_of_the_inputs_does_not_matter(
    seed: int, grid: Grid, granularity: Granularity, options: Gptq, power: int
) -> None:
    # A power of 4 changes no rounding anywhere, square roots included.
    weight, x = random_weight(seed, 6, 9), correlated_inputs(seed, tokens=20, channels=9)
    x[:, 4] = 0.0
    matrix = hessian_of(x).matrix
    codes, _ = solve(weight, matrix, grid, granularity, options)
    other, _ = solve(weight, matrix * 4.0**power, grid, granularity, options)
    assert torch.equal(codes, other)


@given(st.integers(0, 1000), grids, configurations)
def test_weights_that_lie_on_the_grid_stay(seed: int, grid: Grid, options: Gptq) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(grid.lowest, grid.highest + 1, (6, 9), generator=generator).to(torch.int16)
    zero_point = torch.full((6, 1), float(grid.highest // 2)) if grid.lowest == 0 else None
    fixed = Parameters(torch.full((6, 1), 0.25), zero_point)
    weight = decode(codes, fixed, grid, ROW)
    matrix = hessian_of(correlated_inputs(seed, channels=9)).matrix
    found, parameters = gptq_(weight.clone(), factor(matrix, options, "layer"), grid, ROW, options, fixed)
    assert torch.equal(found, codes)
    assert parameters is fixed


def test_fixed_parameters_are_those_that_the_errors_are_made_up_for() -> None:
    options, grid = Gptq(), IntegerGrid(3)
    weight, hessian = random_weight(0), hessian_of(correlated_inputs(0))
    clipped = Parameters(parameters_of(weight, grid, ROW).scale * 0.8)
    codes, _ = gptq_(weight.clone(), factor(hessian.matrix, options, "layer"), grid, ROW, options, clipped)
    rounded = fake_quantize(weight, clipped, grid, ROW)
    assert output_error(hessian, decode(codes, clipped, grid, ROW) - weight) < output_error(hessian, rounded - weight)


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_on_correlated_inputs_the_output_error_is_on_average_below_that_of_nearest(
    grid: Grid, granularity: Granularity, act_order: bool
) -> None:
    # Not for each seed: a column is rounded to what is nearest for it, whatever that costs the later ones, and an early
    # column's error can push a later one beyond its range. No bound holds for a single weight; the mean is far below.
    options = Gptq(act_order=act_order)
    compensated, plain = 0.0, 0.0
    for seed in range(10):
        weight, hessian = random_weight(seed), hessian_of(correlated_inputs(seed))
        codes, parameters = solve(weight, hessian.matrix, grid, granularity, options)
        compensated += output_error(hessian, decode(codes, parameters, grid, granularity) - weight)
        codes, parameters = nearest(weight, grid, granularity)
        plain += output_error(hessian, decode(codes, parameters, grid, granularity) - weight)
    assert compensated < 0.7 * plain


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("granularity", [ROW, COLUMN, Granularity("column_group", 4)], ids=str)
def test_dead_channels_are_rounded_to_nearest_and_touch_no_other(granularity: Granularity, act_order: bool) -> None:
    grid, options = IntegerGrid(4), Gptq(act_order=act_order, block=8)
    weight, x = random_weight(0), correlated_inputs(0)
    dead = torch.zeros(22, dtype=torch.bool)
    dead[[0, 9, 21]] = True
    weight[:, dead] *= 0.1  # rows keep their range without them
    x[:, dead] = 0.0
    codes, _ = solve(weight, hessian_of(x).matrix, grid, granularity, options)
    alone, _ = solve(weight[:, ~dead], hessian_of(x[:, ~dead]).matrix, grid, granularity, options)
    assert torch.equal(codes[:, dead], nearest(weight, grid, granularity)[0][:, dead])
    assert torch.equal(codes[:, ~dead], alone)


def test_noise_in_a_dead_channels_row_touches_no_other() -> None:
    # A shift that takes off all of a constant channel leaves rounding errors in its row, and a diagonal at or below 0.
    matrix = hessian_of(correlated_inputs(0)).matrix
    matrix[3], matrix[:, 3] = 0.0, 0.0
    noisy = matrix.clone()
    noisy[3], noisy[:, 3] = 1e-3, 1e-3
    noisy[3, 3] = -1e-3
    expected, found = factor(matrix, Gptq(), "layer"), factor(noisy, Gptq(), "layer")
    assert torch.equal(found.effects, expected.effects)
    assert torch.equal(found.order, expected.order)


def test_a_site_that_is_always_zero_is_rounded_to_nearest() -> None:
    weight, grid = random_weight(0), IntegerGrid(4)
    codes, _ = solve(weight, torch.zeros(22, 22), grid, ROW, Gptq())
    assert torch.equal(codes, nearest(weight, grid, ROW)[0])


@given(st.integers(0, 1000), st.integers(1, 12))
def test_fewer_tokens_than_channels_need_no_more_than_the_damping(seed: int, tokens: int) -> None:
    hessian = hessian_of(correlated_inputs(seed)[:tokens])
    assert factor(hessian.matrix, Gptq(), "layer").damping == 0.01


def test_a_hessian_that_is_not_positive_definite_gets_ten_times_the_damping_until_it_is() -> None:
    # The mean diagonal is 1 and the eigenvalues are 101 and −99: a damping of 10 is too little, 100 is enough.
    matrix = torch.tensor([[1.0, 100.0], [100.0, 1.0]])
    found = factor(matrix, Gptq(), "layer")
    assert found.damping == pytest.approx(100.0)
    # (1 + 100) on the diagonal after damping.
    torch.testing.assert_close(found.effects, torch.tensor([[1.0, 100.0 / 101.0], [0.0, 1.0]]))


def test_a_hessian_that_stays_singular_is_an_error_that_names_the_layer() -> None:
    matrix = torch.tensor([[1.0, 100.0], [100.0, 1.0]])
    with pytest.raises(
        NumericalError, match=r"blocks\.3\.fc2: its Hessian is singular even with damping 10; give more"
    ):
        factor(matrix, Gptq(retries=3), "blocks.3.fc2")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [(2, 2), (0, 2)])
def test_a_hessian_that_is_not_finite_is_an_error_that_names_the_layer(value: float, place: tuple[int, int]) -> None:
    matrix = torch.eye(4)
    matrix[place] = value
    with pytest.raises(NumericalError, match=r"blocks\.3\.fc2: its Hessian is not finite"):
        factor(matrix, Gptq(), "blocks.3.fc2")


@pytest.mark.parametrize("act_order", [True, False])
def test_the_factor_takes_the_damped_hessian_apart(act_order: bool) -> None:
    matrix = hessian_of(correlated_inputs(0)).matrix
    found = factor(matrix.clone(), Gptq(act_order=act_order), "layer")
    expected = torch.argsort(matrix.diagonal(), descending=True) if act_order else torch.arange(22)
    assert torch.equal(found.order, expected)
    damped = matrix.double() + 0.01 * matrix.double().diagonal().mean() * torch.eye(22, dtype=torch.float64)
    effects = found.effects.double()
    assert torch.equal(effects, effects.triu())
    # V⁻¹ H V⁻ᵀ is diagonal; float32 entries leave 2^-24 of what is multiplied, here with 22 terms twice.
    undone = torch.linalg.solve(effects, torch.linalg.solve(effects, damped[found.order][:, found.order]).t())
    rest = undone - torch.diag(undone.diagonal())
    condition = float(torch.linalg.cond(effects)) ** 2
    assert float(rest.abs().amax()) <= condition * 44 * 2**-24 * float(damped.abs().amax())


def test_no_number_is_read_back_from_the_device() -> None:
    # Tensors on the meta device have no values, so any look at one would raise.
    for grid in GRIDS:
        for granularity in GRANULARITIES:
            empty = Factor(torch.empty(22, 22, device="meta"), torch.empty(22, dtype=torch.int64, device="meta"), 0.01)
            codes, parameters = gptq_(torch.empty(13, 22, device="meta"), empty, grid, granularity, Gptq(block=8))
            assert codes.shape == (13, 22)
            assert tuple(parameters.scale.shape) == parameter_shape((13, 22), granularity)


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
def test_the_weight_is_left_alone_and_its_gradient_is_not_followed(granularity: Granularity) -> None:
    weight = random_weight(0).requires_grad_()
    _, parameters = solve(weight, hessian_of(correlated_inputs(0)).matrix, IntegerGrid(4), granularity, Gptq())
    assert torch.equal(weight, random_weight(0))
    assert not parameters.scale.requires_grad


@pytest.mark.parametrize("weight", [random_weight(0).bfloat16(), random_weight(0).t().contiguous().t()])
def test_a_weight_whose_memory_cannot_be_worked_in_is_refused(weight: torch.Tensor) -> None:
    found = factor(hessian_of(correlated_inputs(0)).matrix, Gptq(), "layer")
    with pytest.raises(ValueError, match="contiguous and float32"):
        gptq_(weight, found, IntegerGrid(4), ROW, Gptq())


@pytest.mark.parametrize("granularity", [ROW, Granularity("row_group", 16), Granularity("column_group", 16)], ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_some_rows_are_rounded_as_in_the_whole(grid: Grid, granularity: Granularity) -> None:
    # So that several processes can share a layer. Seeds are fixed: a library may sum a product of fewer rows in another
    # order, and a number that this puts on the other side of a tie would rightly differ.
    options = Gptq(block=32)
    weight, matrix = random_weight(0, 112, 90), hessian_of(correlated_inputs(0, channels=90)).matrix
    whole, parameters = solve(weight, matrix, grid, granularity, options)
    for rows in (slice(0, 16), slice(16, 80), slice(80, 112)):
        codes, own = solve(weight[rows], matrix, grid, granularity, options)
        expected = parameters.of_rows(rows, granularity)
        assert torch.equal(codes, whole[rows])
        assert torch.equal(own.scale, expected.scale)
        assert (own.zero_point is None) == (expected.zero_point is None)
        if own.zero_point is not None and expected.zero_point is not None:
            assert torch.equal(own.zero_point, expected.zero_point)


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
def test_how_many_rows_are_rounded_at_a_time_does_not_matter(
    monkeypatch: pytest.MonkeyPatch, granularity: Granularity
) -> None:
    weight, matrix, grid = random_weight(0), hessian_of(correlated_inputs(0)).matrix, IntegerGrid(4, symmetric=False)
    whole, parameters = solve(weight, matrix, grid, granularity, Gptq())
    for rows in (1, 6):
        monkeypatch.setattr("channelwise.methods.gptq.ROWS", rows)
        codes, own = solve(weight, matrix, grid, granularity, Gptq())
        assert torch.equal(codes, whole)
        assert torch.equal(own.scale, parameters.scale)


@pytest.mark.parametrize("granularity", IN_TURN, ids=str)
def test_parameters_of_columns_cannot_be_fixed(granularity: Granularity) -> None:
    weight, grid, options = random_weight(0), IntegerGrid(4), Gptq()
    fixed = parameters_of(weight, grid, granularity)
    with pytest.raises(ValueError, match="cannot be fixed"):
        gptq_(weight.clone(), factor(torch.eye(22), options, "layer"), grid, granularity, options, fixed)


def test_what_does_not_fit_the_weight_is_refused() -> None:
    weight, grid, options = random_weight(0), IntegerGrid(4), Gptq()
    with pytest.raises(ValueError, match="21 channels does not fit a weight of 22 columns"):
        gptq_(weight.clone(), factor(torch.eye(21), options, "layer"), grid, ROW, options)
    with pytest.raises(ValueError, match=r"\(12, 1\) where \(13, 1\)"):
        gptq_(
            weight.clone(), factor(torch.eye(22), options, "layer"), grid, ROW, options, Parameters(torch.ones(12, 1))
        )


@pytest.mark.parametrize(
    "wrong", [{"damping": 0.0}, {"damping": -0.1}, {"block": 0}, {"retries": -1}, {"dampening": 0.1}]
)
def test_options_outside_their_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Gptq(**wrong)
