"""The GPU's kernels, on the GPU where there is one, else by Triton's interpreter on the CPU."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

POISON = {torch.int8: 85, torch.int16: 21_845, torch.int32: 1_431_655_765}


@pytest.fixture
def device() -> torch.device:
    """Where the kernels run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """New memory holds what no kernel would write, so that what is not written shows."""
    empty = torch.empty

    def poisoned(*sizes: object, **options: object) -> torch.Tensor:
        memory = empty(*sizes, **options)
        if memory.is_meta or torch.compiler.is_compiling():
            return memory
        return memory.fill_(POISON.get(memory.dtype, torch.nan) if memory.dtype != torch.uint8 else 85)

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.fixture
def gpu_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers on the CPU take the GPU's kernels, too, where those are interpreted."""
    from channelwise.runtime.gpu import device

    if not torch.cuda.is_available():
        monkeypatch.setattr(device, "available", lambda place: True)
