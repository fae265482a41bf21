"""What the tests of sites, producers and folding share: every block of a tiny model with its call, sites and folds."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from channelwise.model.blocks import find_blocks
from channelwise.model.calls import BlockCall, capture_calls
from channelwise.model.experts import unfuse_experts
from channelwise.model.producers import Fold, prove_folds
from channelwise.model.sites import Site, discover_sites
from tests.model.tiny_models import tiny_batch, tiny_model


@dataclass(frozen=True)
class Step:
    """One block of a walk; call holds the block's true hidden state."""

    block: nn.Module
    call: BlockCall
    sites: tuple[Site, ...]
    folds: tuple[Fold, ...]


def unfused_model(name: str) -> nn.Module:
    """The tiny model in float64 with its experts, if any, taken apart."""
    model = tiny_model(name)
    unfuse_experts(model)
    return model


@cache
def walk(name: str) -> tuple[Step, ...]:
    """All blocks of a tiny model, probed. Read only."""
    model = unfused_model(name)
    blocks = find_blocks(model)
    [calls] = capture_calls(model, blocks, [tiny_batch(model)])
    hidden = calls[0].hidden()
    steps = []
    for block, call in zip(blocks.modules(model), calls, strict=True):
        call = call.with_hidden(hidden)
        sites = discover_sites(block, call)
        steps.append(Step(block, call, sites, prove_folds(block, sites, call)))
        hidden = call.run(block)
    return tuple(steps)


def random_vectors(channels: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A shift and a scale, float64 [channels]."""
    shift = torch.randn(channels, generator=generator, dtype=torch.float64)
    return shift, torch.rand(channels, generator=generator, dtype=torch.float64) * 2.0 + 0.3
