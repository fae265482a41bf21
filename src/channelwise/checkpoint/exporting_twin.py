"""A quantized model made a floating-point one again: to probe, and to take what is not quantized from."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from channelwise.checkpoint.exporting_folds import Batch
from channelwise.errors import InputError
from channelwise.model.batches import accepted, vocabulary_size
from channelwise.model.linears import replace_module
from channelwise.runtime.embedding import QuantizedEmbedding
from channelwise.runtime.linear import QuantizedLinear

PROBE_TOKENS = 16


def plain_config(model: Any) -> Any:
    """A copy of the model's config that says nothing of a quantization."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.architectures = [type(model).__name__]
    return config


def empty_copy(model: Any) -> nn.Module:
    """The model as its config alone makes it, in floating point, on the meta device."""
    config = plain_config(model)
    with torch.device("meta"):
        skeleton: nn.Module = type(model)._from_config(config)
    return skeleton


def make_floating(model: Any, layers: Mapping[str, QuantizedLinear], skeleton: nn.Module) -> tuple[str, ...]:
    """Puts layers and tables in float32 in the place of quantized ones, and the rest in float32, too.

    layers: the model's quantized layers by full name; skeleton: its `empty_copy`. Returns the names of the tables.
    Raises InputError for a table of a class that scales its rows by itself.
    """
    tables = {name: module for name, module in model.named_modules() if isinstance(module, QuantizedEmbedding)}
    for name, table in tables.items():
        if type(skeleton.get_submodule(name)) is not nn.Embedding:
            raise InputError(
                f"{name} scales its rows by itself, so they cannot be written back; quantize with --set embedding=null"
            )
        # Rows as the table gives them, in its own dtype.
        rows = table.dequantized_weight().to(table.dtype)
        floating = nn.Embedding.from_pretrained(rows, padding_idx=table.padding_idx)
        replace_module(model, name, floating)
    for name, layer in layers.items():
        replace_module(model, name, _floating_layer(layer, has_bias=skeleton.get_submodule(name).bias is not None))
    # transformers' own `float` refuses models that it loaded quantized.
    nn.Module.float(model).eval()
    if getattr(model.config, "tie_word_embeddings", False) and not _is_tied(model):
        model.config.tie_word_embeddings = False
    return tuple(tables)


def probe_batch(model: Any) -> Batch:
    """Inputs to look for sites with: two random samples of a few tokens, or two images."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = vocabulary_size(model)
    if vocabulary is not None:
        ids = torch.randint(vocabulary, (2, PROBE_TOKENS), generator=generator)
        return accepted(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    side = model.config.image_size
    shape = (side, side) if isinstance(side, int) else tuple(side)
    pixels = torch.randn(2, getattr(model.config, "num_channels", 3), *shape, generator=generator)
    return accepted(model, {"pixel_values": pixels})


def _is_tied(model: Any) -> bool:
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def _floating_layer(layer: QuantizedLinear, *, has_bias: bool) -> nn.Linear:
    """What the layer does to its untransformed input, up to rounding and a bias that the model has no place for."""
    linear = nn.Linear(layer.in_features, layer.out_features, bias=has_bias, device="meta")
    weight, transform = layer.dequantized_weight(), layer.transform
    if transform.scale is not None:
        weight = weight / transform.scale
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if has_bias:
        bias = torch.zeros(layer.out_features) if layer.bias is None else layer.bias
        if transform.shift is not None:
            bias = bias - weight @ transform.shift
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear
