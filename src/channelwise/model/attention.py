"""Attention whose two matrix products take quantized inputs: q, k, v per token and head, and the probabilities.

It plugs into transformers' attention interface, so it serves every model that uses that. The products multiply the
values that the codes stand for: the accuracy of integer attention, not yet its speed (OS+ quantizes these inputs too).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

from channelwise.errors import InputError
from channelwise.numerics.grids import MAX_BITS, MIN_BITS, IntegerGrid
from channelwise.numerics.inputs import token_codes
from channelwise.numerics.transform import ChannelTransform


def use_quantized_attention(model: nn.Module, bits: int) -> None:
    """Switches the model to attention with inputs of this width, in place.

    Raises InputError where the model's attention does not go through transformers' interface.
    """
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel) or not getattr(model, "_supports_attention_backend", False):
        raise InputError(f"{name} has its own attention: attention_bits cannot reach it; leave attention_bits out")
    register_quantized_attention()
    model.set_attn_implementation(_name(bits))


def register_quantized_attention() -> None:
    """Makes the widths known to transformers; doing it again changes nothing."""
    for bits in range(MIN_BITS, MAX_BITS + 1):
        AttentionInterface.register(_name(bits), partial(quantized_attention, bits=bits))
        AttentionMaskInterface.register(_name(bits), eager_mask)


def quantized_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    bits: int,
    softcap: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(q kᵀ · scaling + mask) v with quantized q, k, v and probabilities, as transformers calls it.

    query, key, value: [batch, heads, tokens, head channels], fewer key and value heads allowed. attention_mask: added.
    Returns [batch, tokens, heads, head channels] and the probabilities [batch, heads, tokens, tokens].
    """
    if others.get("s_aux") is not None:
        raise InputError(f"{type(module).__name__} has attention sinks, which attention_bits does not support")
    grid = IntegerGrid(bits)
    quantized: Callable[[torch.Tensor], torch.Tensor] = partial(_per_token, grid=grid)
    repeats = query.shape[1] // key.shape[1]
    keys = quantized(key).repeat_interleave(repeats, dim=1)
    values = quantized(value).repeat_interleave(repeats, dim=1)
    scores = quantized(query) @ keys.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = _probabilities(torch.softmax(scores, dim=-1), bits)
    output = (probabilities @ values).to(query.dtype)
    return output.transpose(1, 2).contiguous(), probabilities.to(query.dtype)


def _name(bits: int) -> str:
    return f"channelwise_{bits}_bit"


def _per_token(x: torch.Tensor, grid: IntegerGrid) -> torch.Tensor:
    codes, step, _ = token_codes(x, ChannelTransform(), grid)
    return codes * step


def _probabilities(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Probabilities on the unsigned grid over [0, the token's largest]: code 0 is 0 exactly."""
    step = x.amax(dim=-1, keepdim=True) / (2**bits - 1)
    return torch.round(x / step) * step
