"""How a model calls its blocks: the arguments of every block, taken from one forward pass whose blocks do nothing."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from channelwise.errors import InputError
from channelwise.model.blocks import BlockList, hidden_of, with_hidden


@dataclass(frozen=True)
class BlockCall:
    """The arguments of one call of one block.

    position: where the hidden state stands, an index into args or a key of kwargs. That place holds the hidden state
    [batch, tokens, channels], or None where it was not kept (every block but the first).
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    position: int | str

    def hidden(self) -> torch.Tensor:
        """The hidden state kept in this call. Raises ValueError if it was not kept."""
        value = self.args[self.position] if isinstance(self.position, int) else self.kwargs[self.position]
        if value is None:
            raise ValueError("this call does not hold a hidden state: only the first block's calls do")
        return value

    def with_hidden(self, hidden: torch.Tensor | None) -> "BlockCall":
        """The same call with another hidden state, or with none."""
        if isinstance(self.position, int):
            args = (*self.args[: self.position], hidden, *self.args[self.position + 1 :])
            return replace(self, args=args)
        return replace(self, kwargs={**self.kwargs, self.position: hidden})

    def run(self, block: nn.Module, hidden: torch.Tensor | None = None) -> torch.Tensor:
        """Runs the block without gradient and returns the hidden state it puts out.

        hidden: takes the place of the kept one. Raises ValueError if there is neither.
        """
        call = self if hidden is None else self.with_hidden(hidden)
        call.hidden()
        with torch.no_grad():
            return hidden_of(block(*call.args, **call.kwargs))


class _FinishedError(Exception):
    """Ends a forward pass after the last block: nothing behind it is needed."""


@dataclass
class _Recorder:
    """Collects one forward pass's calls and outputs; `templates` empty means that blocks compute for real."""

    count: int
    pool: "_Pool"
    templates: dict[int, Any] = field(default_factory=dict)
    calls: dict[int, BlockCall] = field(default_factory=dict)
    outputs: dict[int, Any] = field(default_factory=dict)

    def add(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        """Keeps the call of one block; returns the hidden state it was called with."""
        if index in self.calls:
            raise InputError(f"block {index} is called more than once in one pass: such a model cannot be walked")
        position = hidden_position(args, kwargs)
        hidden = args[position] if isinstance(position, int) else kwargs[position]
        call = BlockCall(args, kwargs, position).with_hidden(None)
        call = replace(
            call,
            args=tuple(self.pool.share(value) for value in call.args),
            kwargs={name: self.pool.share(value) for name, value in call.kwargs.items()},
        )
        self.calls[index] = call.with_hidden(hidden.detach()) if index == 0 else call
        return hidden

    def finish(self, index: int, output: Any) -> Any:
        """Keeps the structure of a block's output, and ends a pass of blocks that do nothing after the last of them."""
        hidden_of(output)
        self.outputs[index] = with_hidden(output, torch.empty(0))
        # A real pass goes on to its end: a block that is called again (ALBERT's) shows only there.
        if self.templates and len(self.calls) == self.count:
            raise _FinishedError
        return output


def capture_calls(
    model: nn.Module, blocks: BlockList, batches: Sequence[dict[str, torch.Tensor]]
) -> list[list[BlockCall]]:
    """The calls of every block, [batch][block], from one pass per batch in which blocks return their input unchanged.

    batches: the model's inputs (input_ids, attention_mask, pixel_values, ...). What a block returns besides the hidden
    state is learnt from one real pass; where blocks hand tensors to each other that way, every pass is a real one.
    Equal tensors are shared between calls. Raises InputError if a block is not called, or called twice.
    """
    pool = _Pool()
    modules = blocks.modules(model)
    templates: dict[int, Any] | None = None
    captured = []
    for batch in batches:
        if templates is None:
            templates = _output_templates(_pass(model, modules, batch, _Recorder(len(modules), _Pool())).outputs)
        recorder = _pass(model, modules, batch, _Recorder(len(modules), pool, templates))
        captured.append([recorder.calls[index] for index in range(len(modules))])
    return captured


def _pass(model: nn.Module, modules: list[nn.Module], batch: dict[str, torch.Tensor], recorder: _Recorder) -> _Recorder:
    extra = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    with _recording(modules, recorder), torch.no_grad():
        try:
            model(**batch, **extra)
        except _FinishedError:
            return recorder
    missing = [index for index in range(len(modules)) if index not in recorder.calls]
    if missing:
        raise InputError(f"block {missing[0]} was not called in a forward pass: such a model cannot be walked")
    return recorder


@contextmanager
def _recording(modules: list[nn.Module], recorder: _Recorder) -> Iterator[None]:
    """Puts the recorder in the place of every block's forward, and takes it away again."""

    def recorded(index: int, forward: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            hidden = recorder.add(index, args, kwargs)
            if recorder.templates:
                return recorder.finish(index, with_hidden(recorder.templates[index], hidden))
            return recorder.finish(index, forward(*args, **kwargs))

        return run

    earlier = {index: module.__dict__.get("forward") for index, module in enumerate(modules)}
    try:
        for index, module in enumerate(modules):
            module.__dict__["forward"] = recorded(index, module.forward)
        yield
    finally:
        for index, module in enumerate(modules):
            before = earlier[index]
            if before is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = before


def _output_templates(outputs: dict[int, Any]) -> dict[int, Any]:
    """The outputs' structures; empty if one holds other tensors too, which only a real pass can give."""
    for output in outputs.values():
        others = output[1:] if isinstance(output, tuple | list) else ()
        if any(_holds_tensor(other) for other in others):
            return {}
    return outputs


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(_holds_tensor(part) for part in value)
    return isinstance(value, torch.Tensor)


def hidden_position(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | str:
    """Where a block call's hidden state stands: the first floating-point tensor of two or more dimensions.

    Positional arguments come first. Raises InputError if there is none.
    """
    places: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    for place, value in places:
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim >= 2:
            return place
    raise InputError("a block is called without a hidden state: such a model cannot be walked")


class _Pool:
    """One object for equal tensors, so that masks and position embeddings of many batches take the memory of one."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], list[torch.Tensor]] = {}

    def share(self, value: Any) -> Any:
        """The value with its tensors replaced by equal ones seen before; a key-value cache becomes None."""
        if isinstance(value, Cache):
            return None
        if type(value) in (tuple, list):
            return type(value)(self.share(part) for part in value)
        if not isinstance(value, torch.Tensor):
            return value
        value = value.detach()
        known = self._known.setdefault((value.shape, value.dtype, value.device), [])
        for other in known:
            same_memory = other.data_ptr() == value.data_ptr() and other.stride() == value.stride()
            if same_memory or torch.equal(other, value):
                return other
        known.append(value)
        return value
