"""A Llama with random weights, made block by block on the device: in bfloat16, or with layers of ours in its blocks."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import torch
from kinds import INNER, KINDS, Kind, random_layer
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from channelwise.runtime.layout import buffer_layout
from channelwise.runtime.linear import QuantizedLinear
from channelwise.runtime.settling import settle

INTO_THE_STREAM = ("o_proj", "down_proj")
"""Layers whose input is not a norm's output: no shift."""


@dataclass(frozen=True)
class Size:
    """Numbers of a Llama."""

    hidden: int
    inner: int
    blocks: int
    heads: int
    vocabulary: int = 32000


SIZES = {"7b": Size(4096, 11008, 32, 32), "tiny": Size(256, 768, 2, 4, vocabulary=512)}


@dataclass(frozen=True)
class Recipe:
    """Kinds of a block's layers: of those that read a norm's output, and of o and down."""

    stream: Kind
    inner: Kind


RECIPES = {
    "w8a8": Recipe(KINDS["w8a8-channel"], INNER),
    "w8a8-token": Recipe(KINDS["w8a8-token"], KINDS["w8a8-token"]),
    **{name: Recipe(KINDS[name], KINDS[name]) for name in ("w6a6", "w4a8", "w4a4-fp4")},
    "w4": Recipe(KINDS["w4-oc"], KINDS["w4-oc"]),
    "w4-ic": Recipe(KINDS["w4-ic"], KINDS["w4-ic"]),
    "w3": Recipe(KINDS["w3-oc"], KINDS["w3-oc"]),
    "w3-ic": Recipe(KINDS["w3-ic"], KINDS["w3-ic"]),
}


@torch.no_grad()
def random_llama(
    size: Size,
    blocks: int,
    positions: int,
    device: str,
    recipe: Recipe | None = None,
    head: LlamaForCausalLM | None = None,
) -> LlamaForCausalLM:
    """A model in bfloat16 with so many blocks, with a recipe with our layers in them.

    Embedding and output layer are those of `head`, where it is given; they stay in bfloat16, as recipes leave them.
    """
    config = LlamaConfig(
        hidden_size=size.hidden,
        intermediate_size=size.inner,
        num_hidden_layers=0,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        vocab_size=size.vocabulary,
        max_position_embeddings=positions,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config).eval()
            config.num_hidden_layers = blocks
            for number in range(blocks):
                model.model.layers.append(LlamaDecoderLayer(config, number).eval())
                if recipe is not None:
                    _replace_linears(model.model.layers[number], recipe, device)
    finally:
        torch.set_default_dtype(default)
    if head is not None:
        model.model.embed_tokens, model.lm_head = head.model.embed_tokens, head.lm_head
    settle(model)
    return model


def _replace_linears(block: nn.Module, recipe: Recipe, device: str) -> None:
    """Puts random layers of ours in place of all linear layers of a block."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    for parent in list(block.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear):
                kind = recipe.inner if name in INTO_THE_STREAM else recipe.stream
                setattr(parent, name, random_layer(kind, layer.out_features, layer.in_features, device))
    torch.set_default_dtype(default)


def linear_bytes(model: LlamaForCausalLM) -> int:
    """Bytes of the blocks' linear layers as a checkpoint stores them, scales, biases and input vectors included."""
    total = 0
    for layer in model.model.layers.modules():
        if isinstance(layer, QuantizedLinear):
            shapes = filter(None, buffer_layout(layer.scheme).values())
            total += sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in shapes)
        elif isinstance(layer, nn.Linear):
            total += layer.weight.nbytes
    return total


def model_bytes(model: LlamaForCausalLM) -> int:
    """Bytes of all weights: those of the linear layers, embedding, output layer and norms."""
    return linear_bytes(model) + sum(
        parameter.nbytes for name, parameter in model.named_parameters() if not _in_a_linear_layer(model, name)
    )


def _in_a_linear_layer(model: nn.Module, name: str) -> bool:
    return ".layers." in name and isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Linear)


@contextmanager
def by_definition() -> Iterator[None]:
    """Layers of ours compute what `QuantizedLinear.fake_forward` says, in float64, while this lasts."""

    def forward(layer: QuantizedLinear, x: torch.Tensor) -> torch.Tensor:
        return layer.fake_forward(x).to(x.dtype)

    with patch.object(QuantizedLinear, "forward", forward):
        yield
