"""A loaded model made ready for its device's kernels: weights packed for them alone, inputs of neighbours shared."""

import torch
from torch import nn

from channelwise.runtime.linear import QuantizedLinear
from channelwise.runtime.scheme import is_asymmetric
from channelwise.runtime.sharing import SharedInput


def settle(model: nn.Module) -> None:
    """Lets every layer keep its weight as the kernels read it, and neighbours share their input's codes.

    Nothing happens to layers without kernels. A layer that moves to another device is made ready for that one's.
    """
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            module.keep_packed()
    share_inputs(model)


def share_inputs(model: nn.Module) -> None:
    """Lets neighbouring layers that read their input alike share its codes or digits while it is the same tensor."""
    for parent in model.modules():
        layers = [child for child in parent.children() if isinstance(child, QuantizedLinear)]
        while layers:
            first, *others = layers
            same = [first, *(other for other in others if _read_alike(first, other))]
            layers = [layer for layer in others if layer not in same]
            if len(same) > 1:
                shared = SharedInput()
                for layer in same:
                    layer.shared_input = shared


def _read_alike(one: QuantizedLinear, other: QuantizedLinear) -> bool:
    names = ("input_shift", "input_scale", "input_step", "input_zero_point", "input_exponent")
    return (
        one.scheme.inputs == other.scheme.inputs
        and one.in_features == other.in_features
        and _packed_alike(one, other)
        and all(_equal(getattr(one, name), getattr(other, name)) for name in names)
    )


def _packed_alike(one: QuantizedLinear, other: QuantizedLinear) -> bool:
    """Whether kernels ask the same of the inputs of both weights."""
    mine, others = one.scheme.weights, other.scheme.weights
    if one.scheme.inputs is None:
        # Scales of columns multiply the inputs, and are each layer's own.
        return mine == others and mine.granularity.kind not in ("column", "column_group")
    kinds = [(type(grid), grid.bits, is_asymmetric(grid)) for grid in (mine.grid, others.grid)]
    return kinds[0] == kinds[1]


def _equal(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is other if one is None or other is None else torch.equal(one, other)
