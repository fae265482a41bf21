"""Linear layers as one thing: torch.nn.Linear and transformers' Conv1D, weights always [out_features, in_features]."""

from contextlib import suppress
from functools import cache
from typing import Any, TypeGuard

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

FLOAT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def is_linear(module: nn.Module) -> TypeGuard[nn.Linear | Conv1D]:
    """Whether the module is a torch.nn.Linear or Conv1D with an unquantized weight matrix.

    Subclasses that compute something else than x Wᵀ + b (routers that put out indices, too) are none.
    """
    if not isinstance(module, nn.Linear | Conv1D):
        return False
    if not _computes_plainly(type(module)):  # type: ignore[arg-type]
        return False
    weight = module.weight
    return isinstance(weight, torch.Tensor) and weight.ndim == 2 and weight.dtype in FLOAT_DTYPES


def weight_matrix(module: nn.Module) -> torch.Tensor:
    """The weight as [out_features, in_features]: a view without gradient, whatever the layout.

    Raises TypeError if the module is not a linear layer.
    """
    linear = _checked(module)
    weight = linear.weight.detach()
    return weight.t() if isinstance(linear, Conv1D) else weight


def bias_vector(module: nn.Module) -> torch.Tensor | None:
    """The bias [out_features], a view without gradient, or None. Raises TypeError if the module is not linear."""
    bias = _checked(module).bias
    return None if bias is None else bias.detach()


@torch.no_grad()
def set_weight(module: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Writes weight [out_features, in_features] and bias [out_features] in place, in the module's own dtype.

    A bias of None leaves the module's bias alone; a module without one gets a Parameter if one is given.
    Raises TypeError if the module is not a linear layer, ValueError if a shape is not the module's.
    """
    matrix = weight_matrix(module)
    if weight.shape != matrix.shape:
        raise ValueError(f"weight {tuple(weight.shape)} for a linear layer of {tuple(matrix.shape)}")
    if bias is not None and bias.shape != matrix.shape[:1]:
        raise ValueError(f"bias {tuple(bias.shape)} for a linear layer with {matrix.shape[0]} outputs")
    matrix.copy_(weight)
    old = bias_vector(module)
    if bias is None:
        return
    if old is None:
        added = bias.detach().to(matrix.device, matrix.dtype, copy=True)
        module.register_parameter("bias", nn.Parameter(added, requires_grad=False))
    else:
        old.copy_(bias)


def replace_module(root: nn.Module, name: str, new: nn.Module) -> None:
    """Puts `new` where root has the module called `name` (dotted). Raises AttributeError if there is none."""
    parent, _, child = name.rpartition(".")
    owner = root.get_submodule(parent)
    owner.get_submodule(child)
    setattr(owner, child, new)


def linear_names(block: nn.Module) -> tuple[str, ...]:
    """Names of all linear layers inside the block, in the order of its modules."""
    return tuple(name for name, module in block.named_modules() if name and is_linear(module))


@cache
def _computes_plainly(kind: type[nn.Module]) -> bool:
    """Whether modules of this class compute x Wᵀ + b and nothing else: one with a forward of its own is tried."""
    if kind.forward in (nn.Linear.forward, Conv1D.forward):
        return True
    generator = torch.Generator().manual_seed(0)
    # A class that needs more than a linear layer has fails here, and is something else.
    with suppress(Exception), torch.no_grad(), torch.device("cpu"):
        weight, bias, x = (torch.randn(shape, generator=generator) for shape in ((3, 4), (3,), (5, 4)))
        module: Any = kind.__new__(kind)
        if issubclass(kind, nn.Linear):
            nn.Linear.__init__(module, 4, 3)
        else:
            Conv1D.__init__(module, 3, 4)
        module.weight = nn.Parameter(weight if issubclass(kind, nn.Linear) else weight.t().contiguous())
        module.bias = nn.Parameter(bias)
        expected = nn.functional.linear(x, weight, bias)
        return torch.allclose(module.eval()(x), expected, rtol=1e-4, atol=1e-5)
    return False


def _checked(module: nn.Module) -> nn.Linear | Conv1D:
    if not is_linear(module):
        raise TypeError(f"{type(module).__name__} is not a linear layer")
    return module
