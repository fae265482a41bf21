"""Freeze and replay: modules of a block give back recorded outputs, so a change shows only where it reaches directly.

Without the freeze every change would run through all later layers and everything would seem to depend on everything.
"""

import copy
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from channelwise.model.calls import BlockCall
from channelwise.model.linears import bias_vector, is_linear, weight_matrix

Change = Callable[[torch.Tensor], torch.Tensor]
CHANGE_TOLERANCE = 1e-12
WIDENED = 2**22
"""Entries of a weight that are in float64 at one time."""


@dataclass(frozen=True)
class Trace:
    """What watched modules saw in one run: per module the inputs and outputs of its calls, and the block's output.

    Both are copies, for blocks that compute in place. places: where each input lay in memory; held: the inputs
    themselves, so that no place is used twice.
    live: modules that could not be frozen, because they got another number of tokens than before (experts).
    """

    inputs: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    outputs: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    places: dict[str, list[tuple[object, ...]]] = field(default_factory=dict)
    held: list[torch.Tensor] = field(default_factory=list)
    live: set[str] = field(default_factory=set)
    result: torch.Tensor = field(default_factory=lambda: torch.empty(0))


class Probe:
    """A copy of a block in float64 (float32 if it cannot run so) whose watched modules can be recorded and replayed.

    Watched linear layers read their weights from the block itself: a copy of a large one would not fit.
    """

    def __init__(self, block: nn.Module, call: BlockCall, watched: Collection[str]) -> None:
        """call must hold a hidden state. Raises what the block raises if it does not run in float32 either."""
        try:
            self._prepare(block, call, watched, torch.float64)
        except (RuntimeError, TypeError):
            self._prepare(block, call, watched, torch.float32)

    def _prepare(self, block: nn.Module, call: BlockCall, watched: Collection[str], dtype: torch.dtype) -> None:
        lean = {name: block.get_submodule(name) for name in watched if _is_plain_linear(block.get_submodule(name))}
        self.block = _copy_without(lean.values(), block).to(dtype).eval()
        self.call = cast_call(call, dtype)
        self._watched = {name: self.block.get_submodule(name) for name in watched}
        self._forwards = {name: module.forward for name, module in self._watched.items()}
        self._forwards |= {name: partial(wide_linear, linear, dtype) for name, linear in lean.items()}
        self.recorded = self.run()

    @property
    def watched(self) -> tuple[str, ...]:
        """The names of the watched modules."""
        return tuple(self._watched)

    def run(
        self,
        hidden: torch.Tensor | None = None,
        changes: Mapping[str, Change] | None = None,
        undo: Mapping[str, Change] | None = None,
        frozen: Trace | None = None,
    ) -> Trace:
        """One run of the block.

        changes: applied to the outputs of the named modules, undo: to their inputs. frozen: the run whose outputs
        watched modules give back; a call whose input has another shape than there computes its output instead.
        """
        trace = Trace()
        for name, module in self._watched.items():
            module.__dict__["forward"] = self._replayed(name, trace, changes or {}, undo or {}, frozen)
        return replace(trace, result=self.call.run(self.block, hidden))

    def _replayed(
        self, name: str, trace: Trace, changes: Mapping[str, Change], undo: Mapping[str, Change], frozen: Trace | None
    ) -> Callable[..., torch.Tensor]:
        def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
            x, args, kwargs = _first(args, kwargs)
            inputs = trace.inputs.setdefault(name, [])
            index = len(inputs)
            inputs.append(x.detach().clone())
            trace.held.append(x.detach())
            trace.places.setdefault(name, []).append(_place(x))
            if name in undo:
                x = undo[name](x)
            before = frozen.inputs.get(name, []) if frozen is not None else []
            if frozen is not None and index < len(before) and before[index].shape == x.shape:
                output = frozen.outputs[name][index].clone()
            else:
                trace.live.add(name)
                output = self._forwards[name](x, *args, **kwargs)
            if name in changes:
                output = changes[name](output)
            trace.outputs.setdefault(name, []).append(output.clone())
            return output

        return forward


def wide_linear(linear: nn.Module, dtype: torch.dtype, x: torch.Tensor) -> torch.Tensor:
    """x Wᵀ + b in dtype, [..., in_features] to [..., out_features], a few rows of the weight widened at a time."""
    weight, bias = weight_matrix(linear), bias_vector(linear)
    rows = max(1, WIDENED // weight.shape[1])
    output = torch.cat([nn.functional.linear(x, part.to(dtype)) for part in weight.split(rows)], dim=-1)
    return output if bias is None else output + bias.to(dtype)


def _is_plain_linear(module: nn.Module) -> bool:
    """Whether the module computes x Wᵀ + b and nothing else."""
    return is_linear(module) and type(module).forward in (nn.Linear.forward, Conv1D.forward)


def _copy_without(linears: Iterable[nn.Module], block: nn.Module) -> nn.Module:
    """A copy of a block in which the weights of these linear layers have their shapes only: they are read in place."""
    known: dict[int, Any] = {}
    for linear in linears:
        weight = linear.get_parameter("weight")
        known[id(weight)] = nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=False)
    return copy.deepcopy(block, known)


def cast_call(call: BlockCall, dtype: torch.dtype) -> BlockCall:
    """The call with every floating-point tensor in dtype."""
    return BlockCall(_cast(call.args, dtype), _cast(call.kwargs, dtype), call.position)


def differs(old: torch.Tensor, new: torch.Tensor) -> bool:
    """Whether two tensors differ by more than rounding, or in shape."""
    if old.shape != new.shape:
        return True
    if old.numel() == 0:
        return False
    return bool((new - old).abs().max() > CHANGE_TOLERANCE * old.abs().max().clamp(min=1e-30))


def changed_modules(old: Trace, new: Trace, names: Collection[str]) -> list[str]:
    """Which of the named modules have other inputs in the new run: other values, shapes or number of calls."""
    return [name for name in names if inputs_differ(old.inputs.get(name, []), new.inputs.get(name, []))]


def inputs_differ(old: list[torch.Tensor], new: list[torch.Tensor]) -> bool:
    """Whether two lists of inputs differ in length or in any entry."""
    return len(old) != len(new) or any(differs(before, after) for before, after in zip(old, new, strict=True))


def noise_like(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Normal noise of the tensor's shape and standard deviation (1 where that is zero), on its device."""
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device, x.dtype)
    spread = x.std(correction=0) if x.numel() else x.new_zeros(())
    return noise * torch.where(spread > 0, spread, torch.ones_like(spread))


def waking_noise(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Noise to take the place of an output: every channel is positive at even tokens and negative at odd ones.

    So no ReLU behind it is dead, however few tokens there are and wherever the channel's own values lie.
    """
    noise = noise_like(x, generator).abs()
    noise.reshape(-1, x.shape[-1])[1::2] *= -1.0
    return noise


def _place(x: torch.Tensor) -> tuple[object, ...]:
    """Where a tensor lies in memory, as rows of channels, and how often it had been written to."""
    layout: tuple[int, ...] = (x.shape[-1],) if x.is_contiguous() else (*x.shape, *x.stride())
    version = 0 if x.is_inference() else x._version
    return (x.data_ptr(), x.dtype, x.numel(), version, *layout)


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.Tensor, tuple[Any, ...], dict[str, Any]]:
    """A module's input apart from its other arguments, whether it came by position or by name."""
    if args:
        return args[0], args[1:], kwargs
    name = next(iter(kwargs))
    return kwargs[name], (), {key: value for key, value in kwargs.items() if key != name}


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if type(value) in (tuple, list):
        return type(value)(_cast(part, dtype) for part in value)
    if type(value) is dict:
        return {name: _cast(part, dtype) for name, part in value.items()}
    return value
