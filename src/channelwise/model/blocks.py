"""Where a model's blocks are, and the shape of what a block returns."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from channelwise.errors import InputError
from channelwise.model.linears import is_linear


@dataclass(frozen=True)
class BlockList:
    """The repeated blocks of a model: the name of their list, and their full names in order."""

    prefix: str
    names: tuple[str, ...]

    def modules(self, model: nn.Module) -> list[nn.Module]:
        """The blocks themselves. Raises AttributeError if the model has no module of such a name."""
        return [model.get_submodule(name) for name in self.names]


def find_blocks(model: nn.Module) -> BlockList:
    """The ModuleList of one class that holds the most linear-layer parameters, among the outermost ModuleLists.

    Raises InputError if there is none, or none with a linear layer.
    """
    candidates = [
        (sum(_linear_parameters(child) for child in children), name, children)
        for name, children in _outermost_lists(model, "")
        if len({type(child) for child in children}) == 1
    ]
    if not candidates:
        raise InputError(f"{type(model).__name__} has no list of like blocks to quantize: is this a transformer?")
    count, prefix, children = max(candidates, key=lambda candidate: candidate[0])
    if count == 0:
        raise InputError(
            f"the blocks of {type(model).__name__} ({prefix}) have no linear layers in floating point: "
            "give an unquantized transformer"
        )
    return BlockList(prefix, tuple(f"{prefix}.{index}" for index in range(len(children))))


def hidden_of(output: Any) -> torch.Tensor:
    """The hidden state in a block's output: the output itself, or the first entry of a tuple or list.

    Raises InputError if it is neither.
    """
    first = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(first, torch.Tensor):
        raise InputError(f"a block returned {type(output).__name__}, not a tensor or a tuple: it cannot be walked")
    return first


def with_hidden(output: Any, hidden: torch.Tensor) -> Any:
    """An output of the same structure with its hidden state replaced."""
    if isinstance(output, tuple | list):
        return type(output)([hidden, *output[1:]])
    return hidden


def _outermost_lists(module: nn.Module, name: str) -> Iterator[tuple[str, list[nn.Module]]]:
    for child_name, child in module.named_children():
        full = f"{name}.{child_name}" if name else child_name
        if isinstance(child, nn.ModuleList):
            yield full, list(child)
        else:
            yield from _outermost_lists(child, full)


def _linear_parameters(module: nn.Module) -> int:
    return sum(part.weight.numel() for part in module.modules() if is_linear(part))
