"""Sites are found without knowing the architecture."""

import pytest
import torch
from torch import nn

from channelwise.errors import InputError
from channelwise.model.calls import BlockCall
from channelwise.model.sites import Site, discover_sites
from tests.model.tiny_models import NAMES
from tests.model.walks import walk

SERIAL = [  # site's layer count, kind, level, number of dependents, mixes tokens
    ("stream", 0, 1, True),
    ("inner", 1, 1, False),
    ("stream", 2, 1, False),
    ("inner", 3, 0, False),
]
MOE = {"mixtral", "qwen3_moe"}
ONE_NORM = {"gptj", "falcon", "cohere"}
TWO_NORMS = {"gpt_neox_parallel", "falcon_new"}


def facts(sites: tuple[Site, ...]) -> list[tuple[str, int, int, bool]]:
    return [(site.kind, site.level, len(site.dependents), site.mixes_tokens) for site in sites]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in MOE | ONE_NORM | TWO_NORMS])
def test_a_serial_block_has_four_sites_in_four_levels(name: str) -> None:
    for step in walk(name):
        assert facts(step.sites) == SERIAL
        for site, following in zip(step.sites, step.sites[1:], strict=False):
            assert site.dependents == (following.name,)


@pytest.mark.parametrize("name", sorted(ONE_NORM))
def test_attention_and_mlp_behind_one_norm_are_one_site(name: str) -> None:
    for step in walk(name):
        assert facts(step.sites) == [("stream", 0, 2, True), ("inner", 1, 0, False), ("inner", 1, 0, False)]


@pytest.mark.parametrize("name", sorted(TWO_NORMS))
def test_parallel_branches_behind_two_norms_share_their_levels(name: str) -> None:
    for step in walk(name):
        assert sorted(facts(step.sites)) == sorted(
            [("stream", 0, 1, True), ("inner", 1, 0, False), ("stream", 0, 1, False), ("inner", 1, 0, False)]
        )


@pytest.mark.parametrize("name", sorted(MOE))
def test_experts_have_sites_of_their_own_behind_attention(name: str) -> None:
    for step in walk(name):
        attention, output, *experts = step.sites
        assert facts((attention,)) == [("stream", 0, 1, True)]
        assert (output.kind, output.level, output.mixes_tokens) == ("inner", 1, False)
        assert set(output.dependents) == {f"mlp.experts.{index}.gate_proj" for index in range(4)}
        assert len(experts) == 8
        for site in experts:
            if site.name.endswith("gate_proj"):
                down = site.name.replace("gate_proj", "down_proj")
                assert facts((site,)) == [("stream", 2, 1, False)]
                assert (site.linears[1], site.dependents) == (site.name.replace("gate", "up"), (down,))
                assert site.scope == site.name.removesuffix(".gate_proj")
            else:
                assert facts((site,)) == [("inner", 3, 0, False)]


def test_a_llama_block_has_the_expected_names_channels_and_scopes() -> None:
    sites = walk("llama")[0].sites
    assert [site.linears for site in sites] == [
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("self_attn.o_proj",),
        ("mlp.gate_proj", "mlp.up_proj"),
        ("mlp.down_proj",),
    ]
    assert [site.channels for site in sites] == [32, 32, 32, 48]
    assert [site.scope for site in sites] == ["self_attn", "", "mlp", "mlp"]


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(x)))


class OneOfThree(nn.Module):
    """A block whose tokens all go to the second expert, beside a layer that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(4, 4)
        self.experts = nn.ModuleList([Expert() for _ in range(3)])
        self.unused = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.experts[1](self.before(x))


def test_experts_without_tokens_get_the_sites_of_one_that_has_some() -> None:
    sites = {site.name: site for site in discover_sites(OneOfThree(), hidden_call())}
    assert set(sites) == {"before"} | {f"experts.{i}.{part}" for i in range(3) for part in ("up", "down")}
    assert set(sites["before"].dependents) == {"experts.0.up", "experts.1.up", "experts.2.up"}
    for index in range(3):
        assert sites[f"experts.{index}.up"].dependents == (f"experts.{index}.down",)
        assert sites[f"experts.{index}.up"].scope == f"experts.{index}"
        assert (sites[f"experts.{index}.up"].level, sites[f"experts.{index}.down"].level) == (1, 2)


class InPlace(nn.Module):
    """A block that overwrites what its layers read and wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 2.0
        z = self.first(y).relu_()
        y += z
        return self.second(y)


def test_blocks_that_compute_in_place_are_probed_all_the_same() -> None:
    first, second = discover_sites(InPlace(), hidden_call())
    assert first.dependents == ("second",)
    assert (second.kind, second.level) == ("stream", 1)


def test_a_block_is_not_changed_by_probing_and_needs_a_hidden_state() -> None:
    block = OneOfThree().to(torch.bfloat16)
    before = {name: value.clone() for name, value in block.state_dict().items()}
    discover_sites(block, hidden_call(torch.bfloat16))
    assert all(torch.equal(value, before[name]) for name, value in block.state_dict().items())
    with pytest.raises(ValueError, match="hidden state"):
        discover_sites(block, BlockCall((None,), {}, 0))


def test_a_block_that_calls_no_linear_layer_is_refused() -> None:
    with pytest.raises(InputError, match="none of its linear layers"):
        discover_sites(nn.LayerNorm(4), hidden_call())


def hidden_call(dtype: torch.dtype = torch.float32) -> BlockCall:
    return BlockCall((torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)).to(dtype),), {}, 0)
