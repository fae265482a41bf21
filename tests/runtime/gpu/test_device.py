"""Kernels are launched on the GPU where their tensors lie, whichever is the current one."""

from contextlib import contextmanager
from typing import Any

import pytest
import torch
from triton.runtime.interpreter import GridExecutor

from channelwise.runtime.gpu.device import on_device
from tests.runtime.gpu.test_layers import BY_KIND, a_layer, inputs_for

pytestmark = pytest.mark.usefixtures("gpu_layers")


def test_another_gpu_than_the_current_one_becomes_current(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[torch.device] = []

    @contextmanager
    def device(place: torch.device) -> Any:
        entered.append(place)
        yield

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", device)
    for place in ("cuda:0", "cuda:1", "cpu"):
        with on_device(torch.device(place)):
            pass
    assert entered == [torch.device("cuda:1")]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter tells of its launches")
@BY_KIND
@pytest.mark.parametrize("tokens", [3, 300])
def test_every_launch_is_on_the_device_of_its_tensors(kind: str, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inside: list[torch.device] = []
    launched: list[bool] = []
    launch = GridExecutor.__call__

    @contextmanager
    def entered(place: torch.device) -> Any:
        inside.append(place)
        yield
        inside.pop()

    def seen(self: GridExecutor, *arguments: Any, **options: Any) -> None:
        launched.append(bool(inside))
        launch(self, *arguments, **options)

    for module in ("integer", "quantize", "weight_only"):
        monkeypatch.setattr(f"channelwise.runtime.gpu.{module}.on_device", entered)
    monkeypatch.setattr(GridExecutor, "__call__", seen)
    layer = a_layer(kind)
    layer(inputs_for(layer, tokens))
    assert launched and all(launched)
