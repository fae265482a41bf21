"""Routers and gates of mixtures of experts are found by what they do."""

import pytest
import torch
from torch import nn

from channelwise.model.calls import BlockCall
from channelwise.model.linears import linear_names
from channelwise.model.probing import Probe
from channelwise.model.routers import floating_weights, proven_routers, router_candidates
from tests.model.tiny_models import tiny_model

HIDDEN, EXPERTS = 6, 4


class Mixture(nn.Module):
    """Experts behind a router, a shared expert with a gate, and a projection before all of them."""

    def __init__(self, shared: int = 5, latent: int = HIDDEN) -> None:
        super().__init__()
        self.moe = nn.Module()
        self.moe.wg = nn.Linear(HIDDEN, EXPERTS, bias=False)
        self.moe.narrow = nn.Linear(HIDDEN, latent)
        self.moe.experts = nn.ModuleList([self._expert(latent, 8) for _ in range(EXPERTS)])
        self.moe.shared = self._expert(HIDDEN, shared)
        self.moe.weighing = nn.Linear(HIDDEN, 1)

    def _expert(self, width: int, inner: int) -> nn.Module:
        return nn.Sequential(nn.Linear(width, inner), nn.SiLU(), nn.Linear(inner, HIDDEN))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [batch, tokens, HIDDEN] to the same shape; each token goes to its best expert."""
        moe, tokens = self.moe, x.flatten(0, 1)
        scores, chosen = torch.softmax(moe.wg(tokens), dim=-1).max(dim=-1)
        latent, out = moe.narrow(tokens), torch.zeros_like(tokens)
        for index, expert in enumerate(moe.experts):
            rows = (chosen == index).nonzero()[:, 0]
            if len(rows):
                out[rows] = expert(latent[rows]) * scores[rows, None]
        out = out + moe.shared(tokens) * torch.sigmoid(moe.weighing(tokens))
        return (tokens + out).view_as(x)


def proven(block: nn.Module) -> tuple[str, ...]:
    call = BlockCall((torch.randn(2, 9, HIDDEN, generator=torch.Generator().manual_seed(0)),), {}, 0)
    with torch.no_grad():
        return proven_routers(block, Probe(block, call, linear_names(block)))


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_the_router_and_the_gate_are_found_whatever_their_names() -> None:
    assert router_candidates(Mixture()) == ("moe.wg", "moe.weighing")
    assert proven(Mixture()) == ("moe.wg", "moe.weighing")


def test_layers_with_as_many_outputs_as_experts_are_no_routers_if_another_layer_reads_them() -> None:
    block = Mixture(shared=EXPERTS, latent=EXPERTS)
    assert set(router_candidates(block)) == {"moe.wg", "moe.narrow", "moe.shared.0", "moe.weighing"}
    assert proven(block) == ("moe.wg", "moe.weighing")


def test_candidates_need_no_weights() -> None:
    with torch.device("meta"):
        assert router_candidates(Mixture()) == ("moe.wg", "moe.weighing")


def test_a_block_without_experts_has_no_routers() -> None:
    assert proven(nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, 1))) == ()


def test_weights_that_nothing_quantizes_are_named_unless_they_are_few() -> None:
    block = tiny_model("mixtral").model.layers[0]
    assert floating_weights(block) == ("mlp.experts",)
    assert floating_weights(Mixture()) == ()
