"""Weights that the config ties, but that are no longer one: quantized ones, and ones of different values."""

from typing import Any

import torch
from torch import nn


def forget_ties(model: nn.Module) -> None:
    """Unties what is no parameter any more, a quantized head or embedding, and what never was one tensor.

    The second is a checkpoint with a head of its own under a config that ties it: transformers loads both as they are,
    and so the config of the module that has them now says that nothing is tied, if nothing else is. The model's
    `tie_weights` then leaves them alone, whoever calls it.
    """
    ties: dict[str, str] = getattr(model, "all_tied_weights_keys", {})
    parameters = dict(model.named_parameters(remove_duplicate=False))
    _untie(model, {target for target, source in ties.items() if target not in parameters or source not in parameters})
    # transformers does not expand the pairs of what is no parameter, so those are gone before it is asked.
    apart = {
        target
        for target, source in _declared(model).items()
        if _are_apart(parameters.get(target), parameters.get(source), tied=target in ties)
    }
    for module in _untie(model, apart):
        # A multi-modal config hands its language model's word on when it is read.
        for config in (module.config, module.config.get_text_config()):
            config.tie_word_embeddings = False


def _untie(model: nn.Module, targets: set[str]) -> list[Any]:
    """Forgets the ties of these parameters, by full name; gives the modules that tied them and now tie nothing."""
    for target in targets:
        getattr(model, "all_tied_weights_keys", {}).pop(target, None)
    freed = []
    # `tie_weights` reads the lists of all models inside anew; they belong to the classes, so these get their own.
    for prefix, module in model.named_modules():
        own = getattr(module, "_tied_weights_keys", None)
        if not isinstance(own, dict):
            continue
        here = f"{prefix}." if prefix else ""
        kept = {target: source for target, source in own.items() if here + target not in targets}
        if kept != own:
            module._tied_weights_keys = kept
            if not kept:
                freed.append(module)
    return freed


def _declared(model: Any) -> dict[str, str]:
    """All pairs that the configs of a transformers model and of the models inside tie, by their full names."""
    expand = getattr(model, "get_expanded_tied_weights_keys", None)
    declared: dict[str, str] = expand(all_submodels=True) if callable(expand) else {}
    return declared


def _are_apart(target: nn.Parameter | None, source: nn.Parameter | None, *, tied: bool) -> bool:
    """Whether both are there, with values of their own. tied: what transformers found as it loaded them.

    Of weights on the meta device that is all one can know.
    """
    if target is None or source is None or target is source:
        return False
    if target.is_meta or source.is_meta:
        return not tied
    return target.shape != source.shape or not torch.equal(target, source.to(target.device))
