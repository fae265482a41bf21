"""Tiny random transformers models, quantized by hand: min-max parameters, no method."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as tf

from channelwise.model.linears import bias_vector, is_linear, replace_module, weight_matrix
from channelwise.numerics.granularity import ROW, Granularity
from channelwise.numerics.grids import FloatGrid, Grid, IntegerGrid
from channelwise.numerics.quantizer import encode, parameters_of
from channelwise.numerics.transform import ChannelTransform
from channelwise.runtime.embedding import QuantizedEmbedding
from channelwise.runtime.linear import QuantizedLinear
from channelwise.runtime.scheme import EmbeddingScheme, InputScheme, LinearScheme, WeightScheme

Save = Callable[..., Path]
"""The fixture `save`: a model to the directory of its checkpoint."""


def llama(**more: Any) -> Any:
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return tf.LlamaForCausalLM(tf.LlamaConfig(**{**sizes, **heads, **more}))


def tied_llama() -> Any:
    return llama(tie_word_embeddings=True)


def opt() -> Any:
    return tf.OPTForCausalLM(
        tf.OPTConfig(
            vocab_size=64,
            hidden_size=16,
            ffn_dim=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            word_embed_proj_dim=16,
            max_position_embeddings=32,
        )
    )


def gpt2() -> Any:
    return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=32))


def bert() -> Any:
    return tf.BertModel(
        tf.BertConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    )


def bert_masked() -> Any:
    return tf.BertForMaskedLM(bert().config)


def vit() -> Any:
    return tf.ViTForImageClassification(
        tf.ViTConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=8,
            patch_size=4,
            num_labels=5,
        )
    )


def mixtral() -> Any:
    return tf.MixtralForCausalLM(
        tf.MixtralConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            num_local_experts=4,
        )
    )


MODELS: dict[str, Callable[[], Any]] = {
    builder.__name__: builder for builder in (llama, tied_llama, opt, gpt2, bert, bert_masked, vit, mixtral)
}


def outputs(model: torch.nn.Module) -> torch.Tensor:
    """The model's first output for a fixed input, without dropout."""
    model.eval()
    generator = torch.Generator().manual_seed(0)
    if "ViT" in type(model).__name__:
        batch = {"pixel_values": torch.randn(2, 3, 8, 8, generator=generator).to(model.dtype)}
    else:
        batch = {"input_ids": torch.randint(0, 64, (2, 11), generator=generator)}
    with torch.no_grad():
        result: torch.Tensor = model(**batch)[0]
    return result


def quantize(model: Any, bits: int = 8, kind: str = "token", keep: tuple[str, ...] = ("lm_head", "classifier")) -> Any:
    """Replaces every linear layer, except those whose last name is kept; returns the model."""
    if type(model).__name__.startswith("Mixtral"):
        from channelwise.model.experts import unfuse_experts

        unfuse_experts(model)
    for name, module in list(model.named_modules()):
        if is_linear(module) and name.rpartition(".")[2] not in keep:
            replace_module(model, name, quantized(module, bits, kind))
    return model


def quantized(module: torch.nn.Module, bits: int, kind: str) -> QuantizedLinear:
    """A linear layer with row scales, a shift and a scale of its inputs."""
    weight, bias = weight_matrix(module).float(), bias_vector(module)
    transform = ChannelTransform(torch.linspace(-0.1, 0.1, weight.shape[1]), torch.linspace(0.5, 1.5, weight.shape[1]))
    folded, grid = transform.fold_weight(weight), IntegerGrid(bits)
    parameters = parameters_of(folded, grid, ROW)
    inputs = InputScheme(grid, kind)  # type: ignore[arg-type]
    scheme = LinearScheme(
        weight.shape[1], weight.shape[0], WeightScheme(grid, ROW), inputs, bias=True, shift=True, scale=True
    )
    bias = transform.fold_bias(weight, None if bias is None else bias.float())
    step = torch.tensor(0.1) if kind == "static" else None
    return QuantizedLinear.from_parts(scheme, encode(folded, parameters, grid, ROW), parameters, bias, transform, step)


def weight_only(model: Any) -> Any:
    """Replaces every linear layer of the blocks by 4-bit weights in groups down the columns; returns the model."""
    grid, groups = IntegerGrid(4, symmetric=False), Granularity("column_group", 16)
    for name, module in list(model.named_modules()):
        if is_linear(module) and name.rpartition(".")[2] != "lm_head":
            weight = weight_matrix(module).float()
            parameters = parameters_of(weight, grid, groups)
            scheme = LinearScheme(weight.shape[1], weight.shape[0], WeightScheme(grid, groups))
            codes = encode(weight, parameters, grid, groups)
            replace_module(model, name, QuantizedLinear.from_parts(scheme, codes, parameters))
    return model


def quantize_embedding(model: Any, grid: Grid = FloatGrid(2, 1)) -> Any:  # noqa: B008 — frozen
    """Replaces the input embedding by a table of this grid with row scales; returns the model."""
    old = model.get_input_embeddings()
    weight = old.weight.detach().float()
    parameters = parameters_of(weight, grid, ROW)
    dtype = str(old.weight.dtype).removeprefix("torch.")
    scheme = EmbeddingScheme(weight.shape[0], weight.shape[1], WeightScheme(grid, ROW), dtype)
    table = QuantizedEmbedding.from_parts(scheme, encode(weight, parameters, grid, ROW), parameters)
    name = next(name for name, module in model.named_modules() if module is old)
    replace_module(model, name, table)
    return model


def exponents_of_llm_fp4(model: Any) -> Any:
    """Replaces every linear layer of the blocks by one of E2M1 weights and inputs with exponents; returns the model."""
    grid = FloatGrid(2, 1)
    for name, module in list(model.named_modules()):
        if is_linear(module) and name.rpartition(".")[2] != "lm_head":
            weight = weight_matrix(module).float()
            parameters, columns = parameters_of(weight, grid, ROW), weight.shape[1]
            inputs = InputScheme(grid, "static")
            scheme = LinearScheme(columns, weight.shape[0], WeightScheme(grid, ROW), inputs, exponents=True)
            codes, step, exponents = encode(weight, parameters, grid, ROW), torch.tensor(0.1), torch.arange(columns) % 4
            layer = QuantizedLinear.from_parts(scheme, codes, parameters, input_step=step, input_exponent=exponents)
            replace_module(model, name, layer)
    return model
