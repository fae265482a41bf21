"""A weight that is only tried gives what the layer that is made of it would give."""

import pytest
import torch

from channelwise.engine.quantize import quantize_linear
from channelwise.methods.site import InputQuantizer, LayerChoice
from channelwise.numerics.granularity import ROW, TENSOR, Granularity
from channelwise.numerics.grids import FloatGrid, Grid, IntegerGrid
from channelwise.numerics.quantizer import parameters_of
from channelwise.numerics.transform import ChannelTransform
from channelwise.runtime import trial
from channelwise.runtime.scheme import InputScheme, WeightScheme
from channelwise.runtime.trial import trial_execution

CHANNELS, OUTPUTS, TOKENS = 37, 21, 19

needs_integers = pytest.mark.skipif(not trial.integers_are_fast(), reason="no fast products of bytes here")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layer(weights: Grid, inputs: Grid, kind: str, granularity: Granularity = ROW, bias: bool = True):
    """A trial's execution, the layer in its own form, and an input of it."""
    linear = torch.nn.Linear(CHANNELS, OUTPUTS, bias=bias)
    linear.weight.data = torch.randn(OUTPUTS, CHANNELS, generator=seeded(0)) + 0.2
    if bias:
        linear.bias.data = torch.randn(OUTPUTS, generator=seeded(1))
    shift = torch.randn(CHANNELS, generator=seeded(2))
    transform = ChannelTransform(shift, torch.linspace(0.5, 4, CHANNELS))
    asymmetric = isinstance(inputs, IntegerGrid) and not inputs.symmetric
    step = torch.tensor(2.5 / inputs.highest) if kind == "static" else None
    zero_point = torch.tensor(float(inputs.highest // 3)) if kind == "static" and asymmetric else None
    scheme, weight_scheme = InputScheme(inputs, kind), WeightScheme(weights, granularity)
    folded = transform.fold_weight(linear.weight.detach())
    own_bias = transform.fold_bias(linear.weight.detach(), linear.bias.detach() if bias else None)
    execution = trial_execution(folded, own_bias, weight_scheme, transform, scheme, step, zero_point)
    choice = LayerChoice(
        weight_scheme, parameters_of(folded, weights, granularity), InputQuantizer(scheme, step, zero_point)
    )
    return execution, quantize_linear(linear, transform, choice), torch.randn(TOKENS, CHANNELS, generator=seeded(3))


@needs_integers
@pytest.mark.parametrize("torchs", [False, True])
@pytest.mark.parametrize("kind", ["static", "token"])
@pytest.mark.parametrize("inputs", [IntegerGrid(8), IntegerGrid(6, symmetric=False), FloatGrid(2, 1)], ids=str)
@pytest.mark.parametrize(
    "weights", [IntegerGrid(8), IntegerGrid(6), IntegerGrid(4, symmetric=False), FloatGrid(2, 1)], ids=str
)
def test_it_gives_what_the_layer_itself_gives(
    monkeypatch: pytest.MonkeyPatch, weights: Grid, inputs: Grid, kind: str, torchs: bool
) -> None:
    if torchs:
        if not trial.onednn_is_exact():
            pytest.skip("torch's products of bytes are not exact here")
        monkeypatch.setattr("channelwise.runtime.packed.takes_integers", lambda: False)
    execution, own, x = layer(weights, inputs, kind)
    assert execution is not None
    exact = own.fake_forward(x)
    torch.testing.assert_close(execution(x).double(), exact, rtol=1e-5, atol=1e-5)
    assert execution.sums(x) is not None


@needs_integers
def test_one_scale_for_all_and_no_bias() -> None:
    execution, own, x = layer(IntegerGrid(8), IntegerGrid(8), "static", TENSOR, bias=False)
    assert execution is not None
    torch.testing.assert_close(execution(x).double(), own.fake_forward(x), rtol=1e-5, atol=1e-5)


@needs_integers
def test_a_weight_may_lie_by_columns() -> None:
    weight, x = torch.randn(OUTPUTS, CHANNELS, generator=seeded(0)), torch.randn(TOKENS, CHANNELS, generator=seeded(1))
    scheme = WeightScheme(IntegerGrid(6), ROW), ChannelTransform(), InputScheme(IntegerGrid(8), "token")
    by_rows, by_columns = (trial_execution(w, None, *scheme) for w in (weight, weight.t().contiguous().t()))
    assert by_rows is not None and by_columns is not None
    assert torch.equal(by_rows(x), by_columns(x))


@pytest.mark.parametrize(
    ("weights", "granularity"),
    [(IntegerGrid(4), Granularity("row_group", 8)), (IntegerGrid(4), Granularity("column_group", 8)),
     (IntegerGrid(8, symmetric=False), ROW), (FloatGrid(4, 3), ROW)],
    ids=str,
)  # fmt: skip
def test_what_is_no_bytes_per_channel_is_left_to_float32(weights: Grid, granularity: Granularity) -> None:
    assert layer(weights, IntegerGrid(8), "token", granularity)[0] is None


def test_without_fast_products_of_bytes_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "integers_are_fast", lambda: False)
    assert layer(IntegerGrid(8), IntegerGrid(8), "token")[0] is None
