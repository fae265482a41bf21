"""OutlierTune (methods.md §1)."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from channelwise.methods.none import NoTransform
from channelwise.methods.outliertune import OutlierTune, channel_steps
from channelwise.methods.site import input_step
from channelwise.methods.smoothquant import SmoothQuant
from channelwise.numerics.grids import IntegerGrid
from channelwise.numerics.inputs import static_codes, static_vectors
from tests.methods.sites import TensorSite, outlier_site

SEEDS = st.integers(0, 1000)


def codes_of(site: TensorSite, method: OutlierTune | SmoothQuant) -> torch.Tensor:
    transform = method.choose(site).transform
    step, zero_point = input_step(site.statistics, transform, site.input_grid)
    return static_codes(site.x, *static_vectors(transform, step, zero_point), site.input_grid)


@given(SEEDS)
def test_every_channel_uses_the_whole_grid(seed: int) -> None:
    codes = codes_of(outlier_site(seed), OutlierTune())
    highest = IntegerGrid(6).highest
    assert bool((codes.amax(dim=(0, 1)) == highest).all())
    assert bool((codes.amin(dim=(0, 1)) == -highest).all())


@given(SEEDS)
def test_codes_are_those_of_explicit_per_channel_quantization(seed: int) -> None:
    site = outlier_site(seed)
    center = site.statistics.center.double()
    steps = site.statistics.absolute_maximum_around(site.statistics.center).double() / site.input_grid.highest
    exact = (site.x.double() - center) / steps
    codes = codes_of(site, OutlierTune())
    # The folded form rounds x·a + c in float32; codes may differ only at ties within that rounding.
    assert float((codes - exact).abs().amax()) <= 0.5 + 1e-4


@given(SEEDS)
def test_equals_smoothquant_with_alpha_one_when_nothing_is_shifted(seed: int) -> None:
    site = outlier_site(seed)
    exact = site.x.double() / (site.statistics.absolute_maximum.double() / site.input_grid.highest)
    # Codes up to 31 pass a few float32 roundings in different places: they may differ at ties, to 2^-16.
    tie = ((exact - exact.floor()) - 0.5).abs() < 2**-16
    same = codes_of(site, OutlierTune(shift="none")) == codes_of(site, SmoothQuant(alpha=1.0))
    assert bool((same | tie).all())


@given(SEEDS)
def test_codes_do_not_change_under_a_diagonal_rescaling_of_the_channels(seed: int) -> None:
    site = outlier_site(seed)
    powers = torch.exp2(
        torch.randint(-6, 7, (site.x.shape[-1],), generator=torch.Generator().manual_seed(seed)).float()
    )
    rescaled = TensorSite(site.x * powers, [w / powers for w in site.weights], site.input_grid)
    assert torch.equal(codes_of(site, OutlierTune()), codes_of(rescaled, OutlierTune()))


@given(SEEDS)
def test_is_exact_when_every_step_is_a_power_of_two_and_inputs_lie_on_the_grid(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    steps = torch.exp2(torch.randint(-5, 6, (16,), generator=generator).float())
    codes = torch.randint(-31, 32, (1, 64, 16), generator=generator).float()
    codes[0, 0], codes[0, 1] = 31, -31
    site = TensorSite(codes * steps, [torch.randn(4, 16)], IntegerGrid(6))
    assert torch.equal(codes_of(site, OutlierTune()), codes)


def test_unseen_values_saturate() -> None:
    site = outlier_site(0)
    transform = OutlierTune().choose(site).transform
    step, zero_point = input_step(site.statistics, transform, site.input_grid)
    vectors = static_vectors(transform, step, zero_point)
    assert float(static_codes(site.x * 1e4, *vectors, site.input_grid).abs().amax()) == site.input_grid.highest


@given(SEEDS)
def test_symmetrization_lowers_spread_and_error_of_folded_weights_when_channels_are_offset(seed: int) -> None:
    site = outlier_site(seed, offset=3.0)
    spread = {}
    loss = {}
    for shift in ("center", "none"):
        transform = OutlierTune(shift=shift).choose(site).transform
        folded = torch.cat([transform.fold_weight(w) for w in site.weights])
        spread[shift] = float(folded.abs().amax())
        loss[shift] = site.loss(transform)
    assert spread["center"] < spread["none"]
    assert loss["center"] < loss["none"]


def test_beats_static_per_tensor_rounding_under_outliers() -> None:
    site = outlier_site(0)
    assert site.loss(OutlierTune().choose(site).transform) < 0.2 * site.loss(NoTransform().choose(site).transform)


def test_whole_steps_keep_zero_exactly_representable() -> None:
    x = torch.relu(torch.randn(2, 200, 32, generator=torch.Generator().manual_seed(0))) * torch.arange(1, 33)
    site = TensorSite(x, [torch.randn(8, 32)], IntegerGrid(6))
    transform = OutlierTune(shift="whole_steps").choose(site).transform
    step, zero_point = input_step(site.statistics, transform, site.input_grid)
    vectors = static_vectors(transform, step, zero_point)
    codes = static_codes(torch.zeros(1, 32), *vectors, site.input_grid)
    zero = transform.undo(codes * step)
    # Whole multiples of a step: what is left is float32 rounding of z and s, parts in 2^23 of the channel's range.
    assert float((zero.abs() / x.amax(dim=(0, 1))).amax()) < 1e-5
    assert float(static_codes(x, *vectors, site.input_grid).abs().amax()) <= site.input_grid.highest


def test_searching_the_shift_takes_the_least_loss() -> None:
    site = TensorSite(torch.relu(outlier_site(2).x), outlier_site(2).weights, IntegerGrid(6))
    fixed = {s: site.loss(OutlierTune(shift=s).choose(site).transform) for s in ("none", "whole_steps", "center")}
    found = OutlierTune(shift="search").choose(site)
    assert float(found.notes["loss"]) == min(fixed.values())


def test_sample_mean_is_the_mean_of_the_samples_centers() -> None:
    x = torch.tensor([[[0.0], [2.0]], [[4.0], [8.0]]])
    site = TensorSite(x, [torch.ones(1, 1)], IntegerGrid(8))
    transform = OutlierTune(center="sample_mean").choose(site).transform
    assert float(transform.shift) == 3.5
    assert float(OutlierTune().choose(site).transform.shift) == 4.0


def test_a_dead_channel_gets_a_small_finite_step() -> None:
    steps = channel_steps(torch.tensor([127.0, 0.0]), 127.0)
    assert float(steps[0]) == 1.0
    assert 0 < float(steps[1]) < 1e-6
