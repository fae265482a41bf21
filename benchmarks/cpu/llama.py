"""A Llama with random weights, made block by block: in bfloat16, or with quantized linear layers from the start."""

from dataclasses import dataclass, replace

import torch
from layers import FP4, PER_IC, PER_OC, STATIC8, TOKEN8, Scheme, held_bytes, random_layer
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from channelwise.numerics.granularity import ROW, Granularity
from channelwise.numerics.grids import FloatGrid, IntegerGrid
from channelwise.runtime.linear import QuantizedLinear
from channelwise.runtime.scheme import InputScheme, WeightScheme

STREAM = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
INNER = ("o_proj", "down_proj")

SIZES: dict[str, dict[str, int]] = {
    "1b": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_key_value_heads": 4},
    "300m": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 16, "num_key_value_heads": 4},
    "tiny": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 2, "num_key_value_heads": 4},
}
"""1b is TinyLlama's shape: 1.1 billion parameters, 0.97 of them in the blocks' linear layers."""

HEADS = {"1b": 32, "300m": 16, "tiny": 4}
VOCABULARY, POSITIONS = 32000, 2048


@dataclass(frozen=True)
class Recipe:
    """Schemes of a block's linear layers: q, k, v, gate, up and o, down; head: of the output layer, None for bf16."""

    stream: Scheme
    inner: Scheme
    head: Scheme | None = None


def _static(weights: WeightScheme, inputs: InputScheme, exponents: bool = False) -> Recipe:
    """Static inputs everywhere, as OutlierTune and LLM-FP4 leave them: a shift at norm outputs alone."""
    if exponents:
        return Recipe(*[Scheme(weights, inputs, exponents=True)] * 2)
    inner = Scheme(weights, inputs, scale=True)
    return Recipe(replace(inner, shift=True), inner)


def _weight_only(bits: int, direction: Granularity) -> Recipe:
    return Recipe(*[Scheme(WeightScheme(IntegerGrid(bits, symmetric=False), direction))] * 2)


W8, W4 = WeightScheme(IntegerGrid(8), ROW), WeightScheme(IntegerGrid(4), ROW)

RECIPES: dict[str, Recipe] = {
    "w8a8": _static(W8, STATIC8),
    "w8a8-tokens": replace(_static(W8, STATIC8), inner=Scheme(W8, TOKEN8)),
    "w4a8": _static(W4, STATIC8),
    "w4a4-fp4": _static(FP4, InputScheme(FloatGrid(2, 1), "static"), exponents=True),
    "w4": _weight_only(4, PER_OC),
    "w3": _weight_only(3, PER_OC),
    "w2": _weight_only(2, PER_OC),
    "w4-ic": _weight_only(4, PER_IC),
    "w3-ic": _weight_only(3, PER_IC),
    "fp4": Recipe(*[Scheme(FP4)] * 2),
}
"""w8a8 is `outliertune-static-w8a8`, w8a8-tokens `outliertune-w8a8`; w4a8 the same with 4-bit weights; w4a4-fp4 has
LLM-FP4's exponents; wX are weights only, in groups of 128 with zero points."""

HEAD_SCHEME = Scheme(WeightScheme(IntegerGrid(8, symmetric=False), PER_OC))
"""What --head quantizes the output layer with: weights only, 8 bits."""


@torch.no_grad()
def random_llama(size: str, recipe: Recipe | None = None, shared: LlamaForCausalLM | None = None) -> LlamaForCausalLM:
    """A Llama in bfloat16 whose blocks hold random weights or, with a recipe, random codes.

    Embedding and output layer are those of `shared`, where it is given. Never more than one block is there in bf16
    with a recipe.
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        config = LlamaConfig(
            **{**SIZES[size], "num_hidden_layers": 0},
            num_attention_heads=HEADS[size],
            vocab_size=VOCABULARY,
            max_position_embeddings=POSITIONS,
            eos_token_id=None,
            bos_token_id=0,
            pad_token_id=0,
            dtype="bfloat16",
            attn_implementation="sdpa",
        )
        model = LlamaForCausalLM(config).eval()
        config.num_hidden_layers = SIZES[size]["num_hidden_layers"]
        for number in range(config.num_hidden_layers):
            block = LlamaDecoderLayer(config, number).eval()
            if recipe is not None:
                _quantize(block, recipe)
            model.model.layers.append(block)
    finally:
        torch.set_default_dtype(default)
    if shared is not None:
        model.model.embed_tokens, model.lm_head = shared.model.embed_tokens, shared.lm_head
    if recipe is not None and recipe.head is not None:
        model.lm_head = random_layer(recipe.head, VOCABULARY, config.hidden_size)
    return model


def _quantize(block: nn.Module, recipe: Recipe) -> None:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    for parent in (block.self_attn, block.mlp):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear):
                scheme = recipe.stream if name in STREAM else recipe.inner
                setattr(parent, name, random_layer(scheme, layer.out_features, layer.in_features))
    torch.set_default_dtype(default)


def linear_bytes(model: LlamaForCausalLM) -> int:
    """Bytes in memory of the blocks' linear layers."""
    total = 0
    for layer in model.model.layers.modules():
        if isinstance(layer, QuantizedLinear):
            total += held_bytes(layer)
        elif isinstance(layer, nn.Linear):
            total += layer.weight.nbytes
    return total
