"""How large a model is: bytes of what a checkpoint stores, bits per weight of its linear layers."""

from dataclasses import dataclass

import torch
from torch import nn

from channelwise.model.linears import is_linear
from channelwise.runtime.linear import QuantizedLinear


@dataclass(frozen=True)
class Sizes:
    """model_bytes: of all parameters and stored buffers, tied ones once.

    bits_per_weight: over the quantized linear layers, scales and zero points included; without any, over the
    floating-point linear layers (None where there are none of either).
    """

    model_bytes: int
    bits_per_weight: float | None


def model_sizes(model: nn.Module) -> Sizes:
    """The sizes of a model, quantized or not."""
    return Sizes(_stored_bytes(model), bits_per_weight(model))


def _stored_bytes(model: nn.Module) -> int:
    """Bytes of the state dict, each storage place once."""
    tensors = {
        (tensor.data_ptr(), tensor.shape): tensor for tensor in model.state_dict().values() if _is_tensor(tensor)
    }
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _is_tensor(value: object) -> bool:
    """A state dict may also hold what get_extra_state returned."""
    return isinstance(value, torch.Tensor)


def bits_per_weight(model: nn.Module) -> float | None:
    """Stored bits over the number of weights of the linear layers, None without any; on the meta device, too."""
    quantized = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    if quantized:
        weights = sum(layer.in_features * layer.out_features for layer in quantized)
        return 8.0 * sum(layer.weight_bytes() for layer in quantized) / weights
    floating = [module.weight for module in model.modules() if is_linear(module)]
    weights = sum(weight.numel() for weight in floating)
    return 8.0 * sum(weight.numel() * weight.element_size() for weight in floating) / weights if weights else None
