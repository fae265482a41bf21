"""Routers and gates of mixtures of experts: linear layers that say which experts a token goes to, and with what weight.

They stay in floating point. They are a few rows each, and a rounded one sends tokens to other experts.
"""

from collections.abc import Sequence

import torch
from torch import nn

from channelwise.model.experts import owner_of, sibling_prefixes
from channelwise.model.linears import is_linear, linear_names, weight_matrix
from channelwise.model.probing import CHANGE_TOLERANCE, Probe, Trace, changed_modules, noise_like

NOTABLE = 0.05
"""The share of a block's weights from which on they are worth naming."""


def router_candidates(block: nn.Module) -> tuple[str, ...]:
    """Linear layers beside a list of experts that put out one number for each expert, or a single one (a gate).

    Beside: below the module that holds the list, but not in it. Nothing is computed, so meta will do.
    """
    groups = sibling_prefixes(block)
    inside = tuple(prefix for group in groups for prefix in group)
    found: dict[str, None] = {}
    for group in groups:
        place = owner_of(group)
        for name in linear_names(block):
            outputs = weight_matrix(block.get_submodule(name)).shape[0]
            if name.startswith(place) and not name.startswith(inside) and outputs in (1, len(group)):
                found[name] = None
    return tuple(found)


def proven_routers(block: nn.Module, probe: Probe) -> tuple[str, ...]:
    """The candidates whose output no linear layer reads: another one sends tokens elsewhere, but makes no new input.

    probe: of this block, watching all its linear layers.
    """
    generator = torch.Generator().manual_seed(0)
    groups = sibling_prefixes(block)
    found = []
    for name in router_candidates(block):
        moved = probe.run(changes={name: lambda y: y + noise_like(y, generator)}, frozen=probe.recorded)
        if not _makes_new_inputs(probe.recorded, moved, groups):
            found.append(name)
    return tuple(found)


def _makes_new_inputs(recorded: Trace, moved: Trace, groups: Sequence[tuple[str, ...]]) -> bool:
    """Whether the first layer that the change reaches gets a token that neither it nor its like elsewhere had before.

    What comes behind it follows: an expert computes anew for other tokens.
    """
    changed = changed_modules(recorded, moved, tuple(moved.inputs))
    if not changed:
        return False
    old = [x for like in _likes(changed[0], groups) for x in recorded.inputs.get(like, [])]
    return _has_new_rows(old, moved.inputs[changed[0]])


def _likes(name: str, groups: Sequence[tuple[str, ...]]) -> list[str]:
    """The layers in the same place of like experts, or the layer alone."""
    for group in groups:
        if name.startswith(group):
            within = name.removeprefix(next(prefix for prefix in group if name.startswith(prefix)))
            return [prefix + within for prefix in group]
    return [name]


def _has_new_rows(old: Sequence[torch.Tensor], new: Sequence[torch.Tensor]) -> bool:
    """Whether a token of the new inputs, [..., channels], is none of the old ones."""
    rows = [x.reshape(-1, x.shape[-1]) for x in new if x.numel()]
    if not rows:
        return False
    known = [x.reshape(-1, x.shape[-1]) for x in old if x.numel()]
    if not known:
        return True
    before, after = torch.cat(known), torch.cat(rows)
    smallest = CHANGE_TOLERANCE * before.abs().amax()
    return any(not bool(((before - row).abs().amax(dim=1) <= smallest).any()) for row in after)


def floating_weights(block: nn.Module) -> tuple[str, ...]:
    """The modules that hold a notable share of the block's weights as matrices of their own, not as linear layers.

    Nothing quantizes these (experts in a layout that is not known, say), so they should be named. Routers, norms and
    convolutions of some channels each are too small to count.
    """
    matrices = {id(value): value.numel() for value in block.parameters() if value.ndim >= 2}
    found = []
    for name, module in block.named_modules():
        own = sum(value.numel() for value in module.parameters(recurse=False) if value.ndim >= 2)
        if not is_linear(module) and own > NOTABLE * sum(matrices.values()):
            found.append(name)
    return tuple(found)
