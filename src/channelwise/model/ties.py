"""Weights that transformers ties to each other, after one of them has been quantized."""

from torch import nn


def forget_ties(model: nn.Module) -> None:
    """Unties what is no parameter any more: a quantized head or embedding has codes of its own.

    The model's `tie_weights` then leaves them alone, whoever calls it.
    """
    ties: dict[str, str] = getattr(model, "all_tied_weights_keys", {})
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    forgotten = {target for target, source in ties.items() if target not in parameters or source not in parameters}
    for target in forgotten:
        del ties[target]
    # `tie_weights` reads the lists of all models inside anew; they belong to the classes, so these get their own.
    for prefix, module in model.named_modules():
        own = getattr(module, "_tied_weights_keys", None)
        if not isinstance(own, dict):
            continue
        here = f"{prefix}." if prefix else ""
        kept = {target: source for target, source in own.items() if here + target not in forgotten}
        if kept != own:
            module._tied_weights_keys = kept
