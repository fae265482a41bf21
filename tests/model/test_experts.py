"""Fused experts taken apart compute the same."""

import pytest
import torch
from torch import nn
from transformers import GptOssConfig, MixtralConfig, MixtralForCausalLM
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

from channelwise.errors import InputError
from channelwise.model.experts import UnfusedExperts, sibling_prefixes, unfuse_experts
from channelwise.model.linears import linear_names
from tests.model.tiny_models import TABLE, tiny_batch, tiny_model, tiny_output


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_the_model_computes_the_same_after_unfusing(name: str) -> None:
    model = tiny_model(name)
    batch = tiny_batch(model)
    before = tiny_output(model, batch)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert unfuse_experts(model) == ("model.layers.0.mlp.experts", "model.layers.1.mlp.experts")
    torch.testing.assert_close(tiny_output(model, batch), before, rtol=1e-12, atol=1e-12)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert "model.layers.1.mlp.experts.3.down_proj" in linear_names(model)
    assert unfuse_experts(model) == ()


def test_unfusing_on_the_meta_device_gives_the_same_names_and_shapes() -> None:
    with torch.device("meta"):
        model = MixtralForCausalLM(MixtralConfig(**TABLE["mixtral"][1]))
    unfuse_experts(model)
    real = tiny_model("mixtral", torch.float32)
    unfuse_experts(real)
    shapes = {name: value.shape for name, value in real.state_dict().items()}
    assert {name: value.shape for name, value in model.state_dict().items()} == shapes
    assert all(parameter.is_meta for parameter in model.parameters())


def test_an_index_past_the_last_expert_means_no_expert() -> None:
    model = tiny_model("mixtral")
    unfuse_experts(model)
    experts = model.model.layers[0].mlp.experts
    assert isinstance(experts, UnfusedExperts)
    weights = torch.ones(3, 1, dtype=torch.float64)
    output = experts(torch.randn(3, 32, dtype=torch.float64), torch.tensor([[0], [4], [4]]), weights)
    assert bool(output[0].any()) and not bool(output[1:].any())


def test_an_unknown_layout_is_refused_by_name_before_anything_is_changed() -> None:
    model = tiny_model("mixtral")
    model.odd = GptOssExperts(GptOssConfig(hidden_size=8, intermediate_size=8, num_local_experts=2))
    with pytest.raises(InputError, match=r"experts of odd \(GptOssExperts\) cannot be taken apart"):
        unfuse_experts(model)
    assert isinstance(model.model.layers[0].mlp.experts.gate_up_proj, nn.Parameter)


def test_only_lists_of_like_modules_with_linear_layers_are_siblings() -> None:
    block = nn.Module()
    block.experts = nn.ModuleList([nn.Sequential(nn.Linear(2, 2)) for _ in range(2)])
    block.plain = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    block.norms = nn.ModuleList([nn.LayerNorm(2), nn.LayerNorm(2)])
    assert sibling_prefixes(block) == [("experts.0.", "experts.1.")]
