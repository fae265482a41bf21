"""Mixtures of experts: quantized, written, loaded by plain transformers, and the same numbers."""

from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

import channelwise
from channelwise.engine.experts import MINIMUM_TOKENS, WARNING
from channelwise.recipe import load_recipe
from channelwise.runtime.linear import QuantizedLinear

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
LLAMA = {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": 64, "num_experts_per_tok": 2, "pad_token_id": 0}
MODELS = {  # class, config, experts in all layers
    "olmoe": ("OlmoeForCausalLM", {**LLAMA, "num_experts": 6}, 12),
    "gpt_oss": ("GptOssForCausalLM", {**LLAMA, "num_local_experts": 6, "head_dim": 8, "sliding_window": 8}, 12),
}
IDS = torch.randint(3, 64, (6, 12), generator=torch.Generator().manual_seed(1))


def mixture(name: str) -> nn.Module:
    """A random model whose experts are fused, with numbers large enough that they matter."""
    class_name, arguments, _ = MODELS[name]
    model_class = getattr(transformers, class_name)
    torch.manual_seed(0)
    config = model_class.config_class(**arguments)
    config._experts_implementation = "eager"
    model = model_class(config).float().eval()
    for parameter_name, parameter in model.named_parameters():
        norm = float("norm" in parameter_name and parameter_name.endswith("weight"))
        parameter.data = torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else 0.2) + norm
    return model.requires_grad_(False)


@pytest.mark.parametrize("recipe", ["rtn-w8a8", "outliertune-w8a8", "gptq-ada-w3g128"])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_expert_is_quantized_and_the_checkpoint_runs_in_transformers(
    name: str, recipe: str, tmp_path: Path
) -> None:
    chosen = load_recipe(recipe, ["weights.group_size=12"] if "g128" in recipe else [])
    result = channelwise.quantize(mixture(name), recipe=chosen, data=IDS, output=tmp_path / name)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name)
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, result.model(IDS).logits)
    experts = [layer for layer, module in loaded.named_modules() if ".experts." in layer and _quantized(module)]
    assert len(experts) == 3 * MODELS[name][2]


def test_experts_that_are_excluded_come_back_from_interleaved_weights(tmp_path: Path) -> None:
    model = mixture("gpt_oss")
    gate_up = model.model.layers[0].mlp.experts.gate_up_proj.clone()
    chosen = load_recipe("rtn-w8a8", ['exclude=["*.gate_proj"]'])
    result = channelwise.quantize(model, recipe=chosen, data=IDS, output=tmp_path / "out")
    loaded, _ = channelwise.load(tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, result.model(IDS).logits)
    assert torch.equal(loaded.model.layers[0].mlp.experts[2].gate_proj.weight, gate_up[2, :, ::2].T)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_experts_that_few_tokens_reached_are_named_and_all_others_are_not(name: str) -> None:
    record = channelwise.quantize(mixture(name), recipe="outliertune-w8a8", data=IDS).record
    experts = [site for site in record.sites if ".experts." in site.name]
    few = {site.name for site in experts if site.notes.get("warning") == WARNING}
    assert few and few == {site.name for site in experts if site.tokens < MINIMUM_TOKENS}
    assert len(few) < len(experts)
    assert all("warning" not in site.notes for site in record.sites if ".experts." not in site.name)


def test_an_expert_that_no_token_reached_has_the_static_range_of_its_siblings() -> None:
    result = channelwise.quantize(mixture("olmoe"), recipe="rtn-w8a8", data=IDS[:1, :4])
    read = [site for site in result.record.sites if site.name.endswith("gate_proj")]
    silent = [site for site in read if site.tokens == 0]
    assert silent
    for site in silent:
        assert site.notes["note"] == "no token reached it: rounded to nearest with its siblings' statistics"
        assert site.largest == max(like.largest for like in read if _list_of(like.name) == _list_of(site.name)) > 0.0
        layers = [result.model.get_submodule(linear) for linear in site.linears]
        assert all(layer.scheme.inputs.kind == "static" for layer in layers)


def _list_of(name: str) -> str:
    return name.rpartition(".experts.")[0]


def _quantized(module: nn.Module) -> bool:
    return isinstance(module, QuantizedLinear)
