"""Folds are proven where they hold and refused, with the reason, where they do not."""

import pytest
import torch
from torch import nn

from channelwise.model.calls import BlockCall
from channelwise.model.producers import Fold, prove_folds
from channelwise.model.sites import discover_sites
from tests.model.tiny_models import NAMES
from tests.model.walks import walk

LLAMA_LIKE = ["llama", "mistral", "qwen2", "qwen3", "gemma3", "stablelm"]
PRE_NORM = [
    *LLAMA_LIKE,
    "phi3",
    "opt",
    "bloom",
    "gpt2",
    "gpt_neox",
    "gpt_neox_parallel",
    "gptj",
    "falcon",
    "falcon_new",
]
PRE_NORM += ["cohere", "vit", "deit"]
POST_NORM = ["opt_350m", "bert", "roberta", "distilbert"]
GELU = ["bloom", "gpt2", "gpt_neox", "falcon", "gptj", "bert", "vit", "deit"]
FLOAT32_SOFTMAX = "bloom"


def folds(name: str) -> dict[str, Fold]:
    return {fold.site: fold for fold in walk(name)[0].folds}


def stream_folds(name: str) -> list[Fold]:
    step = walk(name)[0]
    return [fold for site, fold in zip(step.sites, step.folds, strict=True) if site.kind == "stream"]


@pytest.mark.parametrize("name", PRE_NORM)
def test_norms_in_front_of_attention_and_mlp_take_scale_and_shift(name: str) -> None:
    for fold in stream_folds(name):
        assert (fold.scale, fold.shift, fold.reason) == (True, True, "")
        assert "norm" in fold.producer or "ln" in fold.producer
        assert torch.equal(fold.channel_map, torch.arange(32))


@pytest.mark.parametrize("name", [*LLAMA_LIKE, "cohere", "olmo2"])
def test_up_takes_the_scale_of_down_and_no_shift(name: str) -> None:
    fold = folds(name)["mlp.down_proj"]
    assert (fold.producer, fold.scale, fold.shift) == ("mlp.up_proj", True, False)


@pytest.mark.parametrize("name", NAMES)
def test_values_take_the_scale_of_the_attention_output(name: str) -> None:
    step = walk(name)[0]
    attention = next(site for site in step.sites if site.mixes_tokens)
    fold = folds(name)[attention.dependents[0]]
    assert fold.scale and fold.producer in attention.linears
    # Attention rows sum to one, but in this model only up to float32: a shift is then no exact fold.
    assert fold.shift == (name != FLOAT32_SOFTMAX)


def test_one_value_channel_feeds_the_outputs_of_all_its_query_heads() -> None:
    channel_map = folds("llama")["self_attn.o_proj"].channel_map  # 4 query heads of 8 channels, 2 value heads
    value_heads = torch.arange(16).view(2, 1, 8).expand(2, 2, 8).reshape(32)
    assert torch.equal(channel_map, value_heads)


@pytest.mark.parametrize(
    ("name", "site", "producer", "expected"),
    [
        ("phi3", "mlp.down_proj", "mlp.gate_up_proj", torch.arange(48, 96)),
        (
            "phi3",
            "self_attn.o_proj",
            "self_attn.qkv_proj",
            48 + torch.arange(16).view(2, 1, 8).expand(2, 2, 8).flatten(),
        ),
        ("gpt2", "attn.c_proj", "attn.c_attn", torch.arange(64, 96)),
        ("gpt_neox", "attention.dense", "attention.query_key_value", torch.arange(96).view(4, 3, 8)[:, 2].flatten()),
        ("falcon", "self_attention.dense", "self_attention.query_key_value", 40 + torch.arange(8).repeat(4)),
    ],
)
def test_fused_producers_are_mapped_in_their_linear_part(
    name: str, site: str, producer: str, expected: torch.Tensor
) -> None:
    fold = folds(name)[site]
    assert (fold.producer, fold.scale) == (producer, True)
    assert torch.equal(fold.channel_map, expected)


def test_relu_passes_the_scale_even_of_channels_dead_in_the_batch() -> None:
    step = walk("opt")[0]
    block = step.block
    block.fc1.bias.data[:5] -= 1000.0
    try:
        fold = prove_folds(block, step.sites, step.call)[-1]
    finally:
        block.fc1.bias.data[:5] += 1000.0
    assert (fold.site, fold.producer, fold.scale, fold.shift) == ("fc2", "fc1", True, False)
    assert torch.equal(fold.channel_map, torch.arange(48))


@pytest.mark.parametrize("name", GELU)
def test_no_fold_goes_through_gelu(name: str) -> None:
    fold = walk(name)[0].folds[-1]
    assert not fold.scale
    assert "not proportional" in fold.reason


@pytest.mark.parametrize("name", [*POST_NORM, "olmo2"])
def test_a_norm_that_a_residual_reads_is_refused_with_that_reason(name: str) -> None:
    attention, mlp = stream_folds(name)
    assert (attention.scale, attention.producer) == (False, "")
    assert "block's own input" in attention.reason
    assert not mlp.scale
    assert "a residual" in mlp.reason


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_a_norm_that_a_router_reads_is_refused_and_experts_fold_up_into_down(name: str) -> None:
    found = folds(name)
    assert found["self_attn.q_proj"].scale
    for index in range(4):
        assert "router" in found[f"mlp.experts.{index}.gate_proj"].reason
        down = found[f"mlp.experts.{index}.down_proj"]
        assert (down.producer, down.scale, down.shift) == (f"mlp.experts.{index}.up_proj", True, False)


class Branches(nn.Module):
    """A norm whose output two layers read, each in a memory of its own; one of two experts is called."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)
        self.experts = nn.ModuleList([nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4)) for _ in range(2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        return x + self.left(y.clone()) * self.right(y.flip(-1)) + self.experts[1](x)


def test_a_producer_of_several_sites_has_a_fold_for_each_with_its_own_map() -> None:
    torch.manual_seed(0)
    call = BlockCall((torch.randn(2, 5, 4),), {}, 0)
    block = Branches()
    found = {fold.site: fold for fold in prove_folds(block, discover_sites(block, call), call)}
    assert found["left"].producer == found["right"].producer == "norm"
    assert found["left"].channel_map.tolist() == [0, 1, 2, 3]
    assert found["right"].channel_map.tolist() == [3, 2, 1, 0]
    assert found["right"].shift


def test_experts_without_tokens_get_the_fold_of_one_that_has_some() -> None:
    torch.manual_seed(0)
    call = BlockCall((torch.randn(2, 5, 4),), {}, 0)
    block = Branches()
    found = {fold.site: fold for fold in prove_folds(block, discover_sites(block, call), call)}
    assert found["experts.0.2"].producer == "experts.0.0"
    assert found["experts.0.2"].scale
    assert found["experts.0.0"].reason == "its input is the block's own input"
