"""The original model with a checkpoint's channel transforms folded in, and nothing quantized: food for other tools.

A checkpoint keeps a transform at the quantizer and has quantized weights alone, so the original is needed, too. It is
not calibrated a second time: shift and scale are the ones that the checkpoint's layers hold.
"""

from collections.abc import Mapping
from typing import Any

import torch

from channelwise.checkpoint.exporting import Exported, narrowed, site_transform
from channelwise.checkpoint.exporting_folds import Folding, apply_folding, find_sites, plan_folding
from channelwise.checkpoint.exporting_twin import plain_config, probe_batch
from channelwise.checkpoint.shards import checkpoint_tensors
from channelwise.errors import InputError
from channelwise.model.experts import unfuse_experts
from channelwise.model.linears import is_linear, weight_matrix
from channelwise.runtime.linear import QuantizedLinear


@torch.no_grad()
def to_floating_point(original: Any, quantized: Any) -> Exported:
    """The original, changed in place, in float32 where 16 bits do not hold what folding made of its numbers.

    original: the model, loaded in float32, that `quantized` was made from. A site whose transform, or whose shift,
    cannot be folded keeps its input, or the shift, as it was; the notes name it and say why. So what comes out computes
    what the original does. Raises InputError where the two models are not of one origin, and for fused experts.
    """
    layers = {name: module for name, module in quantized.named_modules() if isinstance(module, QuantizedLinear)}
    if unfuse_experts(original):
        raise InputError("models with fused experts cannot be written in floating point yet: give a dense one")
    _check_origin(original, quantized, layers)
    if all(layer.transform.is_identity for layer in layers.values()):
        raise InputError("its recipe transforms no channels, so there is nothing to fold: the original is the result")
    sites = find_sites(original, probe_batch(original), folds=True)
    transforms = {site.name: transform for site in sites if (transform := site_transform(site, layers)) is not None}
    folding = plan_folding(original, sites, transforms)
    apply_folding(original, sites, folding)
    original.config = plain_config(original)
    return Exported(original, narrowed(checkpoint_tensors(original)), None, _notes(folding))


def _notes(folding: Folding) -> tuple[str, ...]:
    """One line for each site that keeps its input, or its shift."""
    return tuple(
        f"{name} keeps its {'shift' if name in folding.sites else 'channels'} as in the original: {reason}"
        for name, reason in folding.reasons.items()
    )


def _check_origin(original: Any, quantized: Any, layers: Mapping[str, QuantizedLinear]) -> None:
    """Raises InputError unless the layers are there in the same sizes, and what is not quantized is the same."""
    modules = dict(original.named_modules())
    for name, layer in layers.items():
        module = modules.get(name)
        if module is None or not is_linear(module) or weight_matrix(module).shape != layer.weight.shape:
            raise InputError(f"--source is another model: it has no linear layer {name} of {list(layer.weight.shape)}")
    ours, theirs = quantized.state_dict(), original.state_dict()
    owned = tuple(f"{name}." for name in layers)
    for name, tensor in ours.items():
        if name in theirs and not name.startswith(owned) and not torch.equal(tensor.float(), theirs[name].float()):
            raise InputError(f"--source is another model: {name} is not what the checkpoint has; give its original")
