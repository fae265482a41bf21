"""Layers with the same input quantize it once, and only while it is the same."""

import copy

import pytest
import torch
from torch import nn

from channelwise.numerics.granularity import ROW
from channelwise.numerics.grids import IntegerGrid
from channelwise.runtime.cpu import library
from channelwise.runtime.linear import QuantizedLinear
from channelwise.runtime.packed import takes_integers
from channelwise.runtime.scheme import InputScheme, WeightScheme
from channelwise.runtime.settling import settle
from tests.runtime.layers import build

pytestmark = pytest.mark.skipif(not library.available(), reason="the kernels were not built: no C++ compiler")
integer_kernels = pytest.mark.skipif(
    not takes_integers(), reason="where oneDNN is exact below AVX-512, products of codes are its, and share nothing"
)


class Attention(nn.Module):
    """Three layers of one site and one of another."""

    def __init__(self, kind: str = "static") -> None:
        super().__init__()
        schemes = WeightScheme(IntegerGrid(8), ROW), InputScheme(IntegerGrid(8), kind)
        self.q, self.k, self.v = (build(rows, 32, *schemes) for rows in (32, 16, 16))
        self.out = build(32, 32, *schemes)
        self.out.input_step = None if kind == "token" else torch.tensor(0.25)

    def site(self) -> list[QuantizedLinear]:
        return [self.q, self.k, self.v]


@pytest.mark.parametrize("kind", ["static", "token"])
def test_shared_codes_change_no_output(kind: str) -> None:
    alone, together = Attention(kind), Attention(kind)
    settle(together)
    for x in (torch.randn(2, 5, 32), torch.randn(1, 32).bfloat16()):
        for one, other in zip(alone.site(), together.site(), strict=True):
            assert torch.equal(one(x), other(x))


def test_neighbours_that_quantize_alike_share() -> None:
    model = Attention()
    settle(model)
    assert model.q.shared_input is model.k.shared_input is model.v.shared_input is not None
    assert model.out.shared_input is None


@integer_kernels
def test_the_same_input_is_quantized_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, seen = Attention(), torch.randn(3, 32), []
    settle(model)
    kind = type(model.q._execution())
    quantize = kind.bytes_of
    monkeypatch.setattr(kind, "bytes_of", lambda self, x: seen.append(1) or quantize(self, x))
    for layer in model.site():
        layer(x)
    assert len(seen) == 1
    model.q(x.clone())
    assert len(seen) == 2


def test_an_input_changed_in_place_is_another_one() -> None:
    model, x = Attention(), torch.randn(3, 32)
    settle(model)
    model.q(x)
    x.mul_(3)
    assert torch.equal(model.k(x), Attention().k(x))


@integer_kernels
def test_codes_are_forgotten_with_their_input() -> None:
    model, x = Attention(), torch.randn(3, 32)
    settle(model)
    model.q(x)
    shared = model.q.shared_input
    assert shared is not None and shared._last is not None
    del x
    assert shared._last is None


def test_a_layer_that_is_changed_shares_no_longer() -> None:
    model, x = Attention(), torch.randn(3, 32)
    settle(model)
    before = model.k(x)
    model.q(x)
    model.k.input_step = model.k.input_step * 2
    assert not torch.equal(model.k(x), before)
    assert model.k.shared_input is None


def test_inference_mode_and_copies_work() -> None:
    model, x = Attention(), torch.randn(3, 32)
    settle(model)
    expected = model.v(x)
    with torch.inference_mode():
        y = torch.randn(3, 32)
        assert torch.equal(model.v(y), Attention().v(y))
    assert torch.equal(copy.deepcopy(model).v(x), expected)
