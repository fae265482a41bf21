"""The GPU's kernels, on the GPU where there is one, else by Triton's interpreter on the CPU."""

from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

POISON = {torch.int8: 85, torch.uint8: 85, torch.int16: 21_845, torch.int32: 1_431_655_765}
LAUNCHERS = ("integer", "quantize", "weight_only")


class Poisoned:
    """torch as a module sees it, but new memory holds what no kernel would write, so that what is not written shows.

    Not torch itself is changed: it remembers its own functions for as long as the process lives.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def empty(*sizes: Any, **options: Any) -> torch.Tensor:
        memory = torch.empty(*sizes, **options)
        return memory.fill_(POISON.get(memory.dtype, torch.nan))


@pytest.fixture
def device() -> torch.device:
    """Where the kernels run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHERS:
        monkeypatch.setattr(f"channelwise.runtime.gpu.{name}.torch", Poisoned())


@pytest.fixture
def gpu_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers on the CPU take the GPU's kernels, too, where those are interpreted."""
    from channelwise.runtime.gpu import device

    if not torch.cuda.is_available():
        monkeypatch.setattr(device, "available", lambda place: True)
