"""Where the GPU's kernels run."""

import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.util import find_spec

import torch

FIRST_CAPABILITY = (8, 0)
"""Ampere: bfloat16, and products of bytes on the tensor cores."""


def available(device: torch.device) -> bool:
    """Whether a layer on this device can be computed by the kernels: an NVIDIA GPU from Ampere on, and Triton."""
    if device.type != "cuda" or torch.version.cuda is None:
        return False
    return torch.cuda.get_device_capability(device) >= FIRST_CAPABILITY and _triton_is_there()


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Where kernels are launched on tensors of this device: Triton looks for the current GPU, not for theirs."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)


@cache
def _triton_is_there() -> bool:
    if find_spec("triton") is None:
        warnings.warn(
            "Triton is not installed, quantized layers run slower with torch alone on the GPU: pip install triton",
            stacklevel=2,
        )
        return False
    return True
