"""The channel transform: exact in real arithmetic, methods.md §0, and what it does to ranges, §2."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from channelwise.numerics.granularity import COLUMN, TENSOR, value_range
from channelwise.numerics.grids import IntegerGrid
from channelwise.numerics.quantizer import fake_quantize, parameters_of
from channelwise.numerics.transform import ChannelTransform
from tests.numerics.cases import gaussian, matrices


@st.composite
def layers(draw):
    """Inputs [T, C], weight [O, C], bias [O] or None and a transform of any parts, float64."""
    tokens, channels, outputs = draw(st.integers(1, 6)), draw(st.integers(1, 8)), draw(st.integers(1, 5))
    seed = draw(st.integers(0, 2**30))
    x, weight = gaussian(tokens, channels, seed=seed).double(), gaussian(outputs, channels, seed=seed + 1).double()
    bias = gaussian(outputs, seed=seed + 2).double() if draw(st.booleans()) else None
    shift = 10 * gaussian(channels, seed=seed + 3).double() if draw(st.booleans()) else None
    scale = torch.exp(2 * gaussian(channels, seed=seed + 4)).double() if draw(st.booleans()) else None
    return x, weight, bias, ChannelTransform(shift, scale)


@given(layers())
def test_the_transformed_layer_has_the_same_output(layer):
    # methods.md §0: X̃ = (X − z)/s, W̃ = W·diag(s), b̃ = b + W z.
    x, weight, bias, transform = layer
    expected = torch.nn.functional.linear(x, weight, bias)
    moved = torch.nn.functional.linear(
        transform.apply(x), transform.fold_weight(weight), transform.fold_bias(weight, bias)
    )
    # Sums of 8 products with |shift| up to about 50: 1e-11 is 1e3 roundings of float64.
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-11)


@given(layers())
def test_undo_is_the_inverse_of_apply(layer):
    x, _, _, transform = layer
    torch.testing.assert_close(transform.undo(transform.apply(x)), x, rtol=0, atol=1e-13)
    torch.testing.assert_close(transform.apply(transform.undo(x)), x, rtol=1e-10, atol=1e-10)


@given(layers())
def test_a_bias_appears_only_where_a_shift_needs_one(layer):
    _, weight, bias, transform = layer
    folded = transform.fold_bias(weight, bias)
    assert (folded is None) == (bias is None and transform.shift is None)
    if transform.shift is None:
        assert folded is bias


@pytest.mark.parametrize("x", [gaussian(2, 3, seed=0), gaussian(2, 3, seed=0).bfloat16()])
def test_the_identity_changes_nothing(x):
    identity = ChannelTransform()
    assert identity.is_identity
    assert identity.apply(x) is x
    assert identity.undo(x) is x
    assert identity.fold_weight(x) is x
    assert not ChannelTransform(shift=torch.zeros(3)).is_identity
    assert not ChannelTransform(scale=torch.ones(3)).is_identity


def test_the_bias_is_folded_with_the_weight_before_scaling():
    weight, shift, scale = torch.tensor([[1.0, 2.0]]), torch.tensor([10.0, 20.0]), torch.tensor([3.0, 5.0])
    assert ChannelTransform(shift, scale).fold_bias(weight, torch.tensor([7.0])).tolist() == [57.0]


def test_the_golden_channels_of_outlier_suppression_plus():
    # methods.md §2: channels [−97, −58] and [5.7, 43]: z = −77.5 and 24.35, range 140 → 39; t = 5: s = 3.9 and 3.73.
    x = torch.tensor([[-97.0, 5.7], [-58.0, 43.0]], dtype=torch.float64)
    z, s = torch.tensor([-77.5, 24.35], dtype=torch.float64), torch.tensor([3.9, 3.73], dtype=torch.float64)
    low, high = value_range(x, TENSOR)
    assert (high - low).item() == 140
    low, high = value_range(ChannelTransform(z).apply(x), TENSOR)
    assert (high - low).item() == pytest.approx(39, rel=1e-6)
    low, high = value_range(ChannelTransform(z, s).apply(x), COLUMN)
    assert high.tolist() == [pytest.approx([5.0, 5.0], rel=1e-6)]
    assert low.tolist() == [pytest.approx([-5.0, -5.0], rel=1e-6)]


@given(matrices(largest=2.0**20))
def test_after_a_shift_by_the_centre_every_channels_max_is_minus_its_min(x):
    # methods.md §2.
    low, high = (bound[0].double() for bound in value_range(x, COLUMN))
    centred = ChannelTransform((low + high) / 2).apply(x.double())
    # In float64 the centre of two float32 numbers up to 2^20, and the differences, err by 2^-32 at the very most.
    torch.testing.assert_close(centred.amax(0), -centred.amin(0), rtol=0, atol=2.0**-32)


def test_symmetrization_lowers_the_spread_of_the_folded_weight_and_its_error():
    # methods.md §1, for channels of spread 1 with some of them offset by ±30: without the shift their step is ten times
    # the others', so their columns of W' are the only ones that an output channel's step fits.
    offset = torch.zeros(64)
    offset[::8] = torch.tensor([30.0, -30.0]).repeat(4)
    x, weight = gaussian(512, 64, seed=0) + offset, gaussian(32, 64, seed=1)
    folded = {}
    for name, shift in [("plain", torch.zeros(64)), ("symmetrized", (x.amin(0) + x.amax(0)) / 2)]:
        steps = (x - shift).abs().amax(0) / 127
        folded[name] = ChannelTransform(shift, steps).fold_weight(weight)
    grid, per_output = IntegerGrid(8), parameters_of

    def error(w: torch.Tensor) -> torch.Tensor:
        parameters = per_output(w.t(), grid, COLUMN)
        return (fake_quantize(w.t(), parameters, grid, COLUMN) - w.t()).norm()

    # The offset channels' range is 34/4 of the others'; a third of that is safely below what is gained.
    assert folded["symmetrized"].abs().std() < folded["plain"].abs().std() / 3
    assert error(folded["symmetrized"]) < error(folded["plain"]) / 3
