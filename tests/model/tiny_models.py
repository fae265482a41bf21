"""Tiny randomly initialised models of many architectures, as a table: name -> (model class, config arguments)."""

import torch
import transformers
from torch import nn

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64}
GPT2 = {"vocab_size": 64, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
BERT = {**SIZES, "intermediate_size": 48, "max_position_embeddings": 66}
OPT = {**SIZES, "ffn_dim": 48, "max_position_embeddings": 64, "word_embed_proj_dim": 32}
VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
IMAGE = {**VIT, "image_size": 16, "patch_size": 4, "num_labels": 3}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

TABLE: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("LlamaForCausalLM", LLAMA),
    "mistral": ("MistralForCausalLM", {**LLAMA, "sliding_window": 8}),
    "qwen2": ("Qwen2ForCausalLM", LLAMA),
    "qwen3": ("Qwen3ForCausalLM", {**LLAMA, "head_dim": 16}),
    "gemma3": ("Gemma3ForCausalLM", {**LLAMA, "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16}),
    "phi3": ("Phi3ForCausalLM", {**LLAMA, "pad_token_id": 0}),
    "opt": ("OPTForCausalLM", OPT),
    "opt_350m": ("OPTForCausalLM", {**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    "bloom": ("BloomForCausalLM", {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "gpt2": ("GPT2LMHeadModel", GPT2),
    "gpt_neox": ("GPTNeoXForCausalLM", {**BERT, "use_parallel_residual": False}),
    "gpt_neox_parallel": ("GPTNeoXForCausalLM", BERT),
    "gptj": ("GPTJForCausalLM", {**GPT2, "rotary_dim": 4}),
    "falcon": ("FalconForCausalLM", {**SIZES, "bias": True}),
    "falcon_new": ("FalconForCausalLM", {**SIZES, "num_kv_heads": 2, "new_decoder_architecture": True}),
    "stablelm": ("StableLmForCausalLM", {**LLAMA, "use_qkv_bias": True}),
    "cohere": ("CohereForCausalLM", {**LLAMA, "use_qk_norm": False}),
    "olmo2": ("Olmo2ForCausalLM", LLAMA),
    "bert": ("BertModel", BERT),
    "roberta": ("RobertaModel", {**BERT, "pad_token_id": 1}),
    "distilbert": ("DistilBertModel", {"vocab_size": 64, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}),
    "vit": ("ViTForImageClassification", IMAGE),
    "deit": ("DeiTForImageClassification", IMAGE),
    "mixtral": ("MixtralForCausalLM", {**LLAMA, "num_local_experts": 4}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", {**LLAMA, **MOE, "head_dim": 16}),
}
NAMES = tuple(TABLE)


def tiny_model(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The model of that name with nothing left at zero or one: norms and biases are random too."""
    class_name, arguments = TABLE[name]
    model_class = getattr(transformers, class_name)
    torch.manual_seed(0)
    config = model_class.config_class(**arguments)
    config._experts_implementation = "eager"
    model = model_class(config).to(dtype).eval()
    for parameter_name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            one = "norm" in parameter_name and parameter_name.endswith("weight") and "gemma" not in name
            parameter.data = torch.randn_like(parameter) * 0.3 + float(one)
        else:
            parameter.data = torch.randn_like(parameter) * 0.2
    return model.requires_grad_(False)


def tiny_batch(model: nn.Module, seed: int = 0, rows: int = 2, tokens: int = 12) -> dict[str, torch.Tensor]:
    """Inputs of a tiny model: token ids, or pixels for a vision model."""
    generator = torch.Generator().manual_seed(seed)
    if model.main_input_name == "pixel_values":
        dtype = next(model.parameters()).dtype
        return {"pixel_values": torch.randn((rows, 3, 16, 16), generator=generator).to(dtype)}
    return {"input_ids": torch.randint(3, 64, (rows, tokens), generator=generator)}


def tiny_output(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The first tensor that the model puts out."""
    with torch.no_grad():
        return model(**batch)[0]
