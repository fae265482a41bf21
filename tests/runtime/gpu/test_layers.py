"""Layers that lie on a GPU: as everywhere, but for the kernels that compute them."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._inductor.utils import run_and_get_code
from torch.utils._python_dispatch import TorchDispatchMode

from channelwise.numerics.granularity import ROW, Granularity
from channelwise.numerics.grids import FloatGrid, IntegerGrid
from channelwise.runtime.gpu import device as gpu
from channelwise.runtime.gpu.executions import Groups, Static, Token, WeightOnly
from channelwise.runtime.gpu.operators import operators
from channelwise.runtime.linear import QuantizedLinear
from channelwise.runtime.scheme import InputScheme, WeightScheme
from channelwise.runtime.settling import share_inputs
from channelwise.runtime.sharing import SharedInput
from tests.runtime.gpu.definition import layer_of

pytestmark = pytest.mark.usefixtures("gpu_layers")

GROUPS = Granularity("row_group", 32)
KINDS: dict[str, tuple[WeightScheme, InputScheme | None, type]] = {
    "W8A8": (WeightScheme(IntegerGrid(8), ROW), InputScheme(IntegerGrid(8), "static"), Static),
    "W8A8 asymmetric": (
        WeightScheme(IntegerGrid(8, False), ROW), InputScheme(IntegerGrid(8, False), "static"), Static
    ),
    "W8A8 per token": (WeightScheme(IntegerGrid(8), ROW), InputScheme(IntegerGrid(8, False), "token"), Token),
    "W6A6": (WeightScheme(IntegerGrid(6), ROW), InputScheme(IntegerGrid(6), "token"), Token),
    "W4A8": (WeightScheme(FloatGrid(2, 1), ROW), InputScheme(IntegerGrid(8), "static"), Static),
    "W4A4": (WeightScheme(FloatGrid(2, 1), ROW), InputScheme(FloatGrid(2, 1), "static"), Static),
    "W3": (WeightScheme(IntegerGrid(3, False), GROUPS), None, WeightOnly),
    "W4 down columns": (WeightScheme(IntegerGrid(4, False), Granularity("column_group", 16)), None, WeightOnly),
    "W4A8 in groups": (WeightScheme(IntegerGrid(4, False), GROUPS), InputScheme(IntegerGrid(8), "static"), Groups),
}  # fmt: skip
BY_KIND = pytest.mark.parametrize("kind", KINDS)


def a_layer(kind: str, seed: int = 0) -> QuantizedLinear:
    weights, inputs, _ = KINDS[kind]
    exponents = kind == "W4A4"
    return layer_of(48, 70, weights, inputs, True, kind != "W4A4", True, exponents=exponents, seed=seed)


def inputs_for(layer: QuantizedLinear, *sizes: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*sizes, 70, dtype=torch.float32, device=layer.weight_scale.device).to(dtype)


class NoWayBack(TorchDispatchMode):
    """Refuses whatever makes the host wait for a number from the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.item):
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


@BY_KIND
def test_layers_take_the_kernels_and_are_their_definition(kind: str) -> None:
    layer = a_layer(kind)
    x = inputs_for(layer, 2, 3)
    y = layer(x)
    assert isinstance(layer._prepared[1], KINDS[kind][2])
    expected = layer.fake_forward(x)
    magnitude = layer._decoded_input(x).abs() @ layer.dequantized_weight().double().abs().t()
    assert bool(((y.double() - expected).abs() <= 1e-5 * (magnitude + 1.0)).all())


@BY_KIND
def test_the_forward_never_waits_for_the_device(kind: str) -> None:
    layer = a_layer(kind)
    x = inputs_for(layer, 5)
    expected = layer(x)
    with NoWayBack():
        assert torch.equal(layer(x), expected)


def test_waiting_is_noticed() -> None:
    with NoWayBack(), pytest.raises(AssertionError, match="waits for the device"):
        float(torch.ones(()))


@BY_KIND
def test_what_gave_up_its_rows_computes_saves_copies_and_loads_as_before(kind: str) -> None:
    layer = a_layer(kind)
    x = inputs_for(layer, 3)
    expected, codes = layer(x), layer.codes()
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    layer.keep_packed()
    assert layer.weight_packed.numel() == 0
    assert torch.equal(layer(x), expected)
    assert torch.equal(layer.codes(), codes)
    assert all(torch.equal(tensor, state[name]) for name, tensor in layer.state_dict().items())
    assert torch.equal(copy.deepcopy(layer)(x), expected)
    layer.load_state_dict(a_layer(kind, seed=1).state_dict())
    assert not torch.equal(layer(x), expected)


@BY_KIND
def test_compiled_layers_give_what_they_give_uncompiled(kind: str) -> None:
    torch._dynamo.reset()
    layer = a_layer(kind)
    layer.keep_packed()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for tokens in (1, 3, 150):
        x = inputs_for(layer, 2, tokens, dtype=torch.bfloat16)
        assert torch.equal(compiled(x), layer(x))


def test_a_compiler_makes_the_codes_of_neighbours_one_kernel_with_the_norm_before_them() -> None:
    class Neighbours(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.RMSNorm(128)
            weights, inputs, _ = KINDS["W8A8"]
            self.one, self.other = (layer_of(48, 128, weights, inputs, True, True, True, seed=seed) for seed in (0, 1))

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            normed = self.norm(x)
            return self.one(normed), self.other(normed)

    torch._dynamo.reset()
    model = Neighbours().to("cuda" if torch.cuda.is_available() else "cpu")
    model.one.keep_packed()
    model.other.keep_packed()
    with torch.no_grad():
        x = torch.randn(5, 128).to(model.one.weight_scale.device)
        found, (source, *others) = run_and_get_code(torch.compile(model, fullgraph=True), x)
        expected = model(x)
    assert not others
    assert sum(source.count(f"= async_compile.{language}(") for language in ("cpp_pybinding", "cpp", "triton")) == 1
    assert source.count("torch.ops.channelwise.gpu_integer_product.default(") == 2
    for one, other in zip(found, expected, strict=True):
        assert bool(((one - other).abs() <= 0.01 * other.abs().max()).all())


@BY_KIND
def test_layers_that_are_not_prepared_are_prepared_outside_of_compiled_code(kind: str) -> None:
    torch._dynamo.reset()
    layer = a_layer(kind)
    x = inputs_for(layer, 2)
    assert torch.equal(torch.compile(layer, backend="eager")(x), layer(x))


@pytest.mark.parametrize(
    ("kind", "tokens", "name"),
    [
        ("W8A8", 5, "integer_product"),
        ("W8A8 per token", 5, "integer_product"),
        ("W3", 5, "product_of_digits"),
        ("W3", 300, "weight_only"),
        ("W4 down columns", 5, "weight_only"),
    ],
)
def test_the_operators_declare_what_they_do(kind: str, tokens: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    layer, seen = a_layer(kind), []
    operator: Callable[..., torch.Tensor] = getattr(operators(), name)
    wrapped = replace(operators(), **{name: lambda *arguments: seen.append(arguments) or operator(*arguments)})
    monkeypatch.setattr("channelwise.runtime.gpu.executions.operators", lambda: wrapped)
    layer.keep_packed()
    torch.compile(layer, backend="eager")(inputs_for(layer, tokens))
    torch.library.opcheck(operator, seen[0], test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("kind", ["W8A8", "W3"])
def test_neighbours_share_what_is_made_of_their_input(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, inputs, execution = KINDS[kind]
    one, other = (layer_of(48, 70, weights, inputs, scale=True, seed=seed) for seed in (0, 0))
    x = inputs_for(one, 4)
    expected = one(x)
    share_inputs(torch.nn.ModuleList([one, other]))
    counted = []
    bytes_of = execution.bytes_of
    monkeypatch.setattr(execution, "bytes_of", lambda self, x: counted.append(1) or bytes_of(self, x))
    assert torch.equal(one(x), expected)
    assert torch.equal(other(x), expected)
    assert len(counted) == 1
    # The next forward begins with a layer that has had these codes: a graph may have changed what x holds.
    assert torch.equal(one(x), expected)
    assert len(counted) == 2
    assert torch.equal(other(x), expected)
    assert len(counted) == 2


def test_layers_whose_scales_multiply_inputs_share_nothing() -> None:
    weights, inputs, _ = KINDS["W4 down columns"]
    layers = [layer_of(48, 70, weights, inputs) for _ in range(2)]
    share_inputs(torch.nn.ModuleList(layers))
    assert layers[0].shared_input is None


def test_codes_from_outside_a_graph_are_not_taken_into_it(monkeypatch: pytest.MonkeyPatch) -> None:
    shared, x = SharedInput(), torch.zeros(1)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert shared.bytes_of(x, 1, lambda: "outside") == "outside"
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert shared.bytes_of(x, 2, lambda: "inside") == "inside"
    assert shared.bytes_of(x, 3, lambda: "again") == "inside"


def test_only_nvidia_gpus_have_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert not gpu.available(torch.device("cpu"))
    assert not gpu.available(torch.device("meta"))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not gpu.available(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert gpu.available(torch.device("cuda"))
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    gpu._triton_is_there.cache_clear()
    with pytest.warns(UserWarning, match="pip install triton"):
        assert not gpu.available(torch.device("cuda"))
    gpu._triton_is_there.cache_clear()
