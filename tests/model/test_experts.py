"""Fused experts taken apart compute the same."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import GptOssConfig, MixtralConfig, MixtralForCausalLM
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.jetmoe.modeling_jetmoe import JetMoeParallelExperts
from transformers.models.llama4.configuration_llama4 import Llama4TextConfig
from transformers.models.llama4.modeling_llama4 import Llama4TextExperts
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from channelwise.errors import InputError
from channelwise.model.experts import UnfusedExperts, expert_prefixes, sibling_prefixes, unfuse_experts
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


def test_the_new_weights_are_views_of_the_old_parameters() -> None:
    model = tiny_model("mixtral")
    fused = model.model.layers[0].mlp.experts.gate_up_proj.untyped_storage().data_ptr()
    unfuse_experts(model)
    experts = model.model.layers[0].mlp.experts
    for expert in experts:
        assert expert.gate_proj.weight.untyped_storage().data_ptr() == fused
        assert expert.up_proj.weight.untyped_storage().data_ptr() == fused


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


def random_numbers(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return module.requires_grad_(False)


def inputs(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3


def routed(width: int, experts: int) -> tuple[Any, ...]:
    chosen = torch.rand(20, experts, generator=torch.Generator().manual_seed(2)).topk(2).indices
    return inputs(20, width), chosen, torch.softmax(inputs(20, 2), dim=-1)


def both(fused: nn.Module, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The outputs of a fused module and of what takes its place."""
    owner = nn.Module()
    owner.experts = random_numbers(fused)
    before = owner.experts(*arguments)
    assert unfuse_experts(owner) == ("experts",)
    return before, owner.experts(*arguments)


def gpt_oss(hidden: int, inner: int, experts: int) -> GptOssExperts:
    config = GptOssConfig(hidden_size=hidden, intermediate_size=inner, num_local_experts=experts)
    config._experts_implementation = "eager"
    return GptOssExperts(config)


@pytest.mark.parametrize("sizes", [(16, 24, 5), (16, 16, 4), (16, 8, 3), (8, 8, 8), (8, 4, 8)])
def test_transposed_interleaved_experts_with_biases_and_a_gate_of_their_own_compute_the_same(
    sizes: tuple[int, int, int],
) -> None:
    before, after = both(gpt_oss(*sizes), *routed(sizes[0], sizes[2]))
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)


def test_experts_without_a_gate_compute_the_same() -> None:
    class Ungated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up_proj = nn.Parameter(torch.empty(3, 24, 16))
            self.down_proj = nn.Parameter(torch.empty(3, 16, 24))
            self.act_fn = nn.ReLU()

        def forward(self, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
            inner = self.act_fn(torch.einsum("th,eih->tei", x, self.up_proj))
            outputs = torch.einsum("tei,ehi->teh", inner, self.down_proj)
            picked = outputs.gather(1, chosen[:, :, None].expand(-1, -1, x.shape[1]))
            return (picked * weights[:, :, None]).sum(dim=1)

    before, after = both(Ungated(), *routed(16, 3))
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)


def test_experts_that_get_the_inputs_of_all_behind_each_other_compute_the_same_and_skip_zeros() -> None:
    fused = Llama4TextExperts(Llama4TextConfig(hidden_size=16, intermediate_size=24, num_local_experts=3))
    x = inputs(3 * 7, 16)
    x[5:12] = 0.0
    before, after = both(fused, x)
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)
    assert not bool(after[5:12].any())


def test_linear_layers_side_by_side_compute_the_same() -> None:
    before, after = both(JetMoeParallelExperts(4, 16, 24), inputs(9, 16), [2, 0, 6, 1])
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)


def test_a_weight_of_three_dimensions_that_is_no_list_of_linear_layers_stays() -> None:
    owner = nn.Module()
    owner.convolution = nn.Conv1d(4, 4, 3)
    owner.other = nn.Module()
    owner.other.weight = nn.Parameter(torch.randn(2, 3, 4))
    assert unfuse_experts(owner) == ()


class Norming(MixtralExperts):
    """Experts whose outputs are normed, which the parameters do not show."""

    def forward(self, *arguments: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(super().forward(*arguments))


def test_what_computes_otherwise_is_refused_by_name_before_anything_is_changed() -> None:
    model = tiny_model("mixtral")
    model.odd = Norming(MixtralConfig(hidden_size=8, intermediate_size=8, num_local_experts=2))
    with pytest.raises(InputError, match=r"experts of odd \(Norming: gate_up_proj \[2, 16, 8\].* cannot be taken"):
        unfuse_experts(model)
    assert isinstance(model.model.layers[0].mlp.experts.gate_up_proj, nn.Parameter)


def test_only_lists_of_like_modules_with_linear_layers_are_siblings() -> None:
    block = nn.Module()
    block.experts = nn.ModuleList([nn.Sequential(nn.Linear(2, 2)) for _ in range(2)])
    block.named = nn.ModuleDict({name: nn.Sequential(nn.Linear(2, 2)) for name in ("a", "b")})
    block.plain = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    block.norms = nn.ModuleList([nn.LayerNorm(2), nn.LayerNorm(2)])
    assert sibling_prefixes(block) == [("experts.0.", "experts.1."), ("named.a.", "named.b.")]


def test_siblings_are_experts_where_a_row_for_each_stands_beside_them() -> None:
    block = nn.Module()
    block.first, block.second = nn.Module(), nn.Module()
    for part in (block.first, block.second):
        part.experts = nn.ModuleList([nn.Sequential(nn.Linear(5, 2)) for _ in range(3)])
    block.first.router = nn.Linear(5, 3, bias=False)
    assert expert_prefixes(block) == [tuple(f"first.experts.{index}." for index in range(3))]
