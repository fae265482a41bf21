"""Every channel with its own step, folded into the weight: the facts of methods.md §1 about OutlierTune."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from channelwise.numerics.granularity import COLUMN, ROW, TENSOR
from channelwise.numerics.grids import IntegerGrid
from channelwise.numerics.inputs import static_codes, static_vectors
from channelwise.numerics.quantizer import Parameters, encode, fake_quantize, parameters_of
from channelwise.numerics.transform import ChannelTransform
from tests.numerics.cases import SYMMETRIC_GRIDS, assert_rounds, gaussian, per_grid

ONE = torch.tensor(1.0)
seeds = st.integers(0, 2**30)
eight_and_six_bits = st.sampled_from([IntegerGrid(8), IntegerGrid(6)])


def with_outlier_channels(seed: int) -> torch.Tensor:
    """Inputs [40, 24] whose channels differ in size by orders of magnitude and in centre."""
    spread, offset = torch.exp(2 * gaussian(24, seed=seed + 1)), 3 * gaussian(24, seed=seed + 2)
    return (gaussian(40, 24, seed=seed) + offset) * spread


def centre_and_steps(x: torch.Tensor, grid: IntegerGrid) -> ChannelTransform:
    """methods.md §1: z_j the centre of the channel's range, s_j = max|X_j − z_j| / q_max."""
    centre = (x.amin(0) + x.amax(0)) / 2
    return ChannelTransform(centre, (x - centre).abs().amax(0) / grid.highest)


def codes_of(x: torch.Tensor, transform: ChannelTransform, grid: IntegerGrid, step: torch.Tensor = ONE) -> torch.Tensor:
    return static_codes(x, *static_vectors(transform, step, None), grid)


@pytest.mark.parametrize("grid", SYMMETRIC_GRIDS, ids=str)
@per_grid
@given(seed=seeds)
def test_transformed_codes_are_those_of_explicit_per_channel_quantization(grid, seed):
    x = with_outlier_channels(seed)
    transform = centre_and_steps(x, grid)
    centred, per_channel = x - transform.shift, Parameters(transform.scale.view(1, -1))
    explicit = encode(centred, per_channel, grid, COLUMN)
    assert torch.equal(encode(transform.apply(x), Parameters(torch.ones(1, 1)), grid, TENSOR), explicit)


@given(seeds, eight_and_six_bits)
def test_folded_codes_are_those_of_explicit_per_channel_quantization(seed, grid):
    x = with_outlier_channels(seed)
    transform = centre_and_steps(x, grid)
    # |z_j| is at most about 10 half ranges here, so x·a and c are below 2^11 steps, rounded to 2^-24 of that, thrice.
    assert_rounds(codes_of(x, transform, grid), transform.apply(x.double()), 3 * 2.0**-13, grid)


@given(seeds, eight_and_six_bits, st.booleans())
def test_folded_codes_are_bit_identical_when_every_step_is_a_power_of_two(seed, grid, shifted):
    x = with_outlier_channels(seed)
    steps = torch.exp2(torch.ceil(torch.log2(centre_and_steps(x, grid).scale)))
    transform = ChannelTransform(x.mean(0) if shifted else None, steps)
    centred = x - transform.shift if shifted else x
    assert torch.equal(
        codes_of(x, transform, grid), encode(centred, Parameters(steps.view(1, -1)), grid, COLUMN).float()
    )


@given(seeds, eight_and_six_bits)
def test_folded_outputs_are_bit_identical_when_every_step_is_a_power_of_two(seed, grid):
    # Σ_j (q_j s_j) W_kj and Σ_j q_j (s_j W_kj): the same products, summed in the same order.
    x, weight = with_outlier_channels(seed), gaussian(5, 24, seed=seed + 9)
    steps = torch.exp2(torch.ceil(torch.log2(centre_and_steps(x, grid).scale)))
    transform = ChannelTransform(scale=steps)
    explicit = fake_quantize(x, Parameters(steps.view(1, -1)), grid, COLUMN) @ weight.t()
    assert torch.equal(codes_of(x, transform, grid) @ transform.fold_weight(weight).t(), explicit)


@given(seeds, eight_and_six_bits)
def test_it_is_smoothquant_with_alpha_one_and_static_per_tensor_activations(seed, grid):
    # methods.md §0: at α = 1 SmoothQuant's s_j is max|X_j|, whatever the weight; the transformed tensor's maximum is 1.
    x, weight = with_outlier_channels(seed), gaussian(5, 24, seed=seed + 9)
    largest = x.abs().amax(0)
    smoothquant, outliertune = ChannelTransform(scale=largest), ChannelTransform(scale=largest / grid.highest)
    step = parameters_of(smoothquant.apply(x), grid, TENSOR).scale.view(())
    exact = x.double() / largest.double() * grid.highest
    # Up to 127 steps, and four roundings to 2^-24 on either way.
    assert_rounds(codes_of(x, outliertune, grid), exact, 127 * 4 * 2.0**-24, grid)
    assert_rounds(codes_of(x, smoothquant, grid, step), exact, 127 * 4 * 2.0**-24, grid)
    # The weights differ by the factor q_max alone, which each output channel's scale absorbs.
    w_smooth, w_tuned = smoothquant.fold_weight(weight), outliertune.fold_weight(weight)
    torch.testing.assert_close(w_smooth * step, w_tuned, rtol=2**-21, atol=0)
    exact_codes = w_smooth.double() / w_smooth.double().abs().amax(1, keepdim=True) * grid.highest
    for folded in [w_smooth, w_tuned]:
        codes = encode(folded, parameters_of(folded, grid, ROW), grid, ROW)
        assert_rounds(codes, exact_codes, 127 * 8 * 2.0**-24, grid)


@given(seeds, eight_and_six_bits)
def test_it_is_unchanged_by_prior_rescaling_of_the_channels_by_powers_of_two(seed, grid):
    x, weight = with_outlier_channels(seed), gaussian(5, 24, seed=seed + 9)
    d = torch.exp2(torch.randint(-6, 7, (24,), generator=torch.Generator().manual_seed(seed)).float())
    before, after = centre_and_steps(x, grid), centre_and_steps(x * d, grid)
    assert torch.equal(codes_of(x, before, grid), codes_of(x * d, after, grid))
    assert torch.equal(before.fold_weight(weight), after.fold_weight(weight / d))


@given(seeds, eight_and_six_bits)
def test_it_is_unchanged_by_any_prior_rescaling_of_the_channels_up_to_rounding(seed, grid):
    x, weight = with_outlier_channels(seed), gaussian(5, 24, seed=seed + 9)
    d = torch.exp(gaussian(24, seed=seed + 5))
    before, after = centre_and_steps(x, grid), centre_and_steps(x * d, grid)
    # As for the folded codes above, with x·d, its centre and its steps rounded once more each.
    assert_rounds(codes_of(x * d, after, grid), before.apply(x.double()), 6 * 2.0**-13, grid)
    torch.testing.assert_close(after.fold_weight(weight / d), before.fold_weight(weight), rtol=2.0**-18, atol=0)


@given(seeds, eight_and_six_bits, st.floats(1.01, 1e4))
def test_unseen_input_beyond_a_channels_range_saturates(seed, grid, factor):
    x = with_outlier_channels(seed)
    transform = centre_and_steps(x, grid)
    reach = factor * transform.scale * (grid.highest + 0.5)
    codes = codes_of(torch.stack([transform.shift + reach, transform.shift - reach]), transform, grid)
    assert codes[0].eq(grid.highest).all()
    assert codes[1].eq(grid.lowest).all()
