"""Norms of any class: modules whose output is multiplied by a weight vector. How is found by trying, not by name."""

import copy
from typing import Literal

import torch
from torch import nn

NormKind = Literal["weight", "one_plus_weight"]


def norm_kind(module: nn.Module) -> NormKind | None:
    """How the output uses the weight [channels]: x̂ · weight + bias, x̂ · (1 + weight) + bias, or None for neither."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.ndim != 1 or any(True for _ in module.children()):
        return None
    try:
        return _tried_kind(module, weight.shape[0])
    except (RuntimeError, TypeError, ValueError, IndexError):
        return None


@torch.no_grad()
def _tried_kind(module: nn.Module, channels: int) -> NormKind | None:
    trial = copy.deepcopy(module).to(torch.float64).eval()
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = torch.randn((3, 4, channels), generator=generator, dtype=torch.float64)
    weight, bias = weight[0], bias[0]
    device = trial.get_parameter("weight").device
    x, weight, bias = x.to(device), weight.to(device), bias.to(device)
    zero = torch.zeros_like(weight)

    def output(with_weight: torch.Tensor, with_bias: torch.Tensor) -> torch.Tensor:
        trial.get_parameter("weight").copy_(with_weight)
        if getattr(trial, "bias", None) is not None:
            trial.get_parameter("bias").copy_(with_bias)
        return trial(x)

    neutral = output(zero, zero)
    plain = output(torch.ones_like(weight), zero)
    if plain.shape != x.shape or not bool(plain.any()):
        return None
    offset = bias if getattr(trial, "bias", None) is not None else zero
    measured = output(weight, bias)
    # The tolerance is float32's: many norms compute in it whatever comes in.
    if not bool(neutral.any()):
        return "weight" if torch.allclose(measured, plain * weight + offset, rtol=1e-4, atol=1e-5) else None
    expected = neutral * (1.0 + weight) + offset
    return "one_plus_weight" if torch.allclose(measured, expected, rtol=1e-4, atol=1e-5) else None
