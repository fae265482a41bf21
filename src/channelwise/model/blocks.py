"""Where a model's blocks are, and the shape of what a block returns."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from channelwise.errors import InputError
from channelwise.model.linears import is_linear

TRIED_TOKENS = 8
"""How many tokens find out which blocks a text runs through."""


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

    Of a model that reads text only those count that text alone runs through: never a vision or audio tower, however
    large. Works on the meta device, too. Raises InputError if there is none, or none with a linear layer.
    """
    lists = dict(_outermost_lists(model, ""))
    if len(lists) > 1 and _reads_text(model):
        lists = _read_by_text(model, lists)
    candidates = [
        (sum(_linear_parameters(child) for child in children), name, children)
        for name, children in lists.items()
        if len({type(child) for child in children}) == 1
    ]
    if not candidates:
        raise InputError(_no_blocks(model, lists))
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


def _reads_text(model: nn.Module) -> bool:
    modalities = getattr(model, "input_modalities", None) or ()
    return getattr(model, "main_input_name", None) == "input_ids" or "text" in modalities


def _read_by_text(model: nn.Module, lists: dict[str, list[nn.Module]]) -> dict[str, list[nn.Module]]:
    """Those of the lists that text alone runs through; where a trial cannot tell, also those of the model's decoder."""
    reached, to_its_end = _reached(model, lists)
    if not to_its_end:
        reached |= _inside_decoder(model, lists)
    return {name: children for name, children in lists.items() if name in reached or not reached}


def _reached(model: nn.Module, lists: dict[str, list[nn.Module]]) -> tuple[set[str], bool]:
    """The lists of which a module is called when the model gets token ids and nothing else; whether it ran to its end.

    It is tried on a copy without weights, so nothing is computed. What such a copy cannot do (choose experts, say)
    ends the trial.
    """
    reached: set[str] = set()
    try:
        twin = _weightless(model)
        for name in lists:
            for block in twin.get_submodule(name).children():
                block.register_forward_pre_hook(lambda *_, name=name: reached.add(name))
        with torch.no_grad():
            twin(input_ids=torch.zeros((1, TRIED_TOKENS), dtype=torch.int64, device="meta"))
    except Exception:  # a model without its weights raises anything
        return reached, False
    return reached, True


def _weightless(model: nn.Module) -> nn.Module:
    """A copy with every parameter and buffer on the meta device; ties stay ties."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor.detach().to("meta") for tensor in tensors})


def _inside_decoder(model: nn.Module, lists: dict[str, list[nn.Module]]) -> set[str]:
    """The lists inside what transformers calls the model's decoder; none if that is the model itself."""
    getter = getattr(model, "get_decoder", None)
    decoder = getter() if callable(getter) else None
    if not isinstance(decoder, nn.Module) or decoder is model:
        return set()
    inside = {id(module) for module in decoder.modules()}
    return {name for name in lists if id(model.get_submodule(name)) in inside}


def _no_blocks(model: nn.Module, lists: dict[str, list[nn.Module]]) -> str:
    """What is wrong with a model that has no list of blocks of one class."""
    for name, children in lists.items():
        kinds = sorted({type(child).__name__ for child in children if _linear_parameters(child)})
        if len(kinds) > 1:
            return (
                f"the blocks of {type(model).__name__} ({name}) are of several classes ({', '.join(kinds)}): "
                "such a model cannot be walked"
            )
    return f"{type(model).__name__} has no list of like blocks to quantize: is this a transformer?"


def _outermost_lists(module: nn.Module, name: str) -> Iterator[tuple[str, list[nn.Module]]]:
    for child_name, child in module.named_children():
        full = f"{name}.{child_name}" if name else child_name
        if isinstance(child, nn.ModuleList):
            yield full, list(child)
        else:
            yield from _outermost_lists(child, full)


def _linear_parameters(module: nn.Module) -> int:
    return sum(part.weight.numel() for part in module.modules() if is_linear(part))
