"""Experts that few calibration tokens reached: rounded to nearest, with what is known of their siblings' inputs.

An expert's siblings are its likes in the same list, and their sites in the same place read the same kind of input.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

import torch
from torch import nn

from channelwise.engine.plan import SitePlan, WeightPlan
from channelwise.engine.quantize import plain_input, plain_layer
from channelwise.methods.site import Candidate, ChannelStatistics, Choice, InputQuantizer, LayerChoice, Method
from channelwise.model.experts import expert_prefixes
from channelwise.model.linears import weight_matrix
from channelwise.model.sites import Site
from channelwise.numerics.grids import Grid
from channelwise.numerics.transform import ChannelTransform
from channelwise.runtime.scheme import InputScheme

MINIMUM_TOKENS = 32
"""With fewer an expert is not calibrated on its own tokens.

Of n + 1 like tokens each is as likely to be the largest, so one in n + 1 new tokens lies beyond the range of n seen:
3 % at 32. The limit does not grow with the channels: GPTQ's damping keeps it from doing worse than rounding to nearest
on few tokens.
"""
WARNING = (
    f"fewer than {MINIMUM_TOKENS} calibration tokens reached these experts, so they are rounded to nearest with their "
    "siblings' statistics; give more samples"
)


def like_sites(block: nn.Module, sites: Sequence[Site]) -> dict[str, tuple[str, ...]]:
    """For every site of an expert the names of the sites in the same place of its siblings, its own among them.

    To be asked before layers are replaced. Sites that are no expert's are missing.
    """
    likes: dict[str, tuple[str, ...]] = {}
    for group in expert_prefixes(block):
        places: dict[str, list[str]] = {}
        for site in sites:
            prefix = next((prefix for prefix in group if site.name.startswith(prefix)), None)
            if prefix is not None:
                places.setdefault(site.name.removeprefix(prefix), []).append(site.name)
        likes |= {name: tuple(names) for names in places.values() for name in names}
    return likes


def has_too_few(site: Site, tokens: int, likes: Mapping[str, tuple[str, ...]]) -> bool:
    """Whether the site is an expert's that fewer than `MINIMUM_TOKENS` tokens reached. likes: of `like_sites`."""
    return site.name in likes and tokens < MINIMUM_TOKENS


def shared_statistics(siblings: Iterable[ChannelStatistics]) -> ChannelStatistics | None:
    """The statistics of several sites' inputs as of one; None if none of them saw a token.

    Means count by tokens, the centres of samples too: how many samples sent tokens to an expert is not known here.
    """
    seen = [statistics for statistics in siblings if statistics.tokens > 0]
    if not seen:
        return None
    tokens = sum(statistics.tokens for statistics in seen)
    absolute = [statistics.mean_absolute for statistics in seen if statistics.mean_absolute is not None]
    return ChannelStatistics(
        minimum=torch.stack([statistics.minimum for statistics in seen]).amin(dim=0),
        maximum=torch.stack([statistics.maximum for statistics in seen]).amax(dim=0),
        sample_center=_by_tokens([statistics.sample_center for statistics in seen], seen),
        tokens=tokens,
        mean_absolute=_by_tokens(absolute, seen) if len(absolute) == len(seen) else None,
    )


def quantize_with_siblings(
    site: Site,
    modules: Mapping[str, nn.Module],
    tokens: int,
    shared: ChannelStatistics | None,
    plan: SitePlan,
    weights: WeightPlan,
) -> tuple[Choice, dict[str, LayerChoice]]:
    """The choice and the layers of an expert's site that `has_too_few` tokens: min-max ranges, rounded to nearest.

    modules: the site's layers by name, without excluded ones. shared: None if no sibling saw a token; then ranges are
    found per token at run time. The transform is the method's where statistics are all that it looks at and channels
    mean the same to all siblings, as in the hidden state that they read; else the identity.
    """
    transform = ChannelTransform()
    if shared is not None and site.kind == "stream":
        matrices = tuple(weight_matrix(module).detach().float() for module in modules.values())
        grids = () if plan.inputs is None else plan.inputs.grids
        transform = _transform(plan.method, _SharedSite(shared, matrices, grids, weights.grids))
    choice = Choice(transform, {"note": _note(tokens, shared), "warning": WARNING})
    inputs = _input(transform, shared, plan)
    return choice, {name: plain_layer(module, transform, weights.scheme, inputs) for name, module in modules.items()}


def recorded_statistics(site: Site, tokens: int, shared: ChannelStatistics | None) -> ChannelStatistics:
    """What a record tells of such a site: its siblings' channels, and its own number of tokens."""
    if shared is not None:
        return replace(shared, tokens=tokens)
    zeros = torch.zeros(site.channels)
    return ChannelStatistics(zeros, zeros, zeros, tokens)


class _TokensNeededError(Exception):
    """A method asked for tokens where only statistics are known."""


@dataclass(frozen=True)
class _SharedSite:
    """A site as methods see it (`methods.site.SiteView`) of which statistics and weights are known, but no token."""

    statistics: ChannelStatistics
    weights: Sequence[torch.Tensor]
    input_grids: tuple[Grid, ...]
    weight_grids: tuple[Grid, ...]

    @property
    def samples(self) -> NoReturn:
        """There are none."""
        raise _TokensNeededError

    @property
    def importance(self) -> NoReturn:
        """There is none."""
        raise _TokensNeededError

    def solved(self, solve: Callable[[int], LayerChoice], costs: Sequence[float]) -> NoReturn:
        """What is solved by layer needs tokens."""
        raise _TokensNeededError

    def loss(self, transform: ChannelTransform, clip: float = 1.0) -> float:
        """Nothing to measure it on."""
        raise _TokensNeededError

    def losses(self, candidates: Sequence[Candidate]) -> NoReturn:
        """Nothing to measure them on."""
        raise _TokensNeededError


def _transform(method: Method, site: _SharedSite) -> ChannelTransform:
    try:
        choice = method.choose(site)
    except _TokensNeededError:
        return ChannelTransform()
    return ChannelTransform() if choice.layers is not None else choice.transform


def _input(transform: ChannelTransform, shared: ChannelStatistics | None, plan: SitePlan) -> InputQuantizer | None:
    if plan.inputs is not None and shared is None:
        return InputQuantizer(InputScheme(plan.inputs.scheme.grid, "token"))
    return plain_input(transform, shared, None if plan.inputs is None else plan.inputs.scheme)


def _note(tokens: int, shared: ChannelStatistics | None) -> str:
    reached = {0: "no token", 1: "1 token"}.get(tokens, f"{tokens} tokens")
    siblings = "rounded to nearest with its siblings' statistics"
    return f"{reached} reached it: {siblings if shared is not None else 'rounded to nearest, and none its siblings'}"


def _by_tokens(values: Sequence[torch.Tensor], seen: Sequence[ChannelStatistics]) -> torch.Tensor:
    counts = torch.tensor([statistics.tokens for statistics in seen], dtype=torch.float64)
    return (torch.stack(list(values)).double() * (counts / counts.sum())[:, None].to(values[0].device)).sum(0).float()
