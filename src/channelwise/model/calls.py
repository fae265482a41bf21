"""How a model calls its blocks: the arguments of every block, taken from one forward pass whose blocks do nothing."""

import inspect
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from channelwise.errors import InputError, NotStreamableError
from channelwise.model.blocks import BlockList, hidden_of, with_hidden
from channelwise.model.sources import one_line
from channelwise.runtime.widening import wide_products

Loaded = Callable[[str], AbstractContextManager[None]]
"""From a block's full name to a context in which its weights are in place."""


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
        with torch.no_grad(), wide_products(block):
            return hidden_of(block(*call.args, **call.kwargs))


class _FinishedError(Exception):
    """Ends a forward pass after the last block: nothing behind it is needed."""


@dataclass(frozen=True)
class Captured:
    """Calls [batch][block], and the structure of every block's output, its hidden state empty."""

    calls: list[list[BlockCall]]
    templates: tuple[Any, ...]


@dataclass
class _Templates:
    """The structures of block outputs, by kind of block: blocks of one kind are built alike, so one of them is enough.

    learning: whether blocks of a kind that is not known yet compute for real. Without, a block of a known kind hands
    on its hidden state, and the pass ends behind the last block; where `real`, all blocks compute in every pass.
    """

    kinds: list[Hashable]
    known: dict[Hashable, Any] = field(default_factory=dict)
    learning: bool = True
    real: bool = False

    def of(self, index: int) -> Any | None:
        """The structure of this block's output; None if it has to compute."""
        return None if self.real else self.known.get(self.kinds[index])

    def learn(self, index: int, output: Any) -> None:
        """Keeps the structure of what a block gave."""
        self.known.setdefault(self.kinds[index], with_hidden(output, torch.empty(0)))

    def learnt(self) -> None:
        """The end of the first pass. What blocks hand on besides the hidden state, only a real pass can give."""
        self.learning, self.real = False, any(_holds_other_tensors(output) for output in self.known.values())


@dataclass
class _Recorder:
    """Collects one forward pass's calls."""

    count: int
    pool: "_Pool"
    templates: _Templates
    calls: dict[int, BlockCall] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pool.begin_pass()

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

    def finish(self, output: Any) -> Any:
        """Ends a pass of blocks that do nothing after the last of them."""
        # The first pass goes on to its end: a block that is called again (ALBERT's) shows only there.
        if not self.templates.learning and not self.templates.real and len(self.calls) == self.count:
            raise _FinishedError
        return output


def capture_calls(
    model: nn.Module, blocks: BlockList, batches: Sequence[dict[str, torch.Tensor]]
) -> list[list[BlockCall]]:
    """The calls of every block, [batch][block]; see `capture`."""
    return capture(model, blocks, batches).calls


def capture(
    model: nn.Module, blocks: BlockList, batches: Sequence[dict[str, torch.Tensor]], loaded: Loaded | None = None
) -> Captured:
    """The calls of every block from one pass per batch in which blocks return their input unchanged.

    batches: the model's inputs (input_ids, attention_mask, pixel_values, ...). What a block returns besides the hidden
    state is learnt in the first pass from one block of each kind; where blocks hand tensors to each other that way,
    every pass is a real one. loaded(name): a context with the block's weights in place, where they are not.
    Equal tensors are shared between calls. Raises InputError if a block is not called, or called twice, and
    NotStreamableError if every pass has to be a real one though weights are not in place.
    """
    pool = _Pool()
    modules = blocks.modules(model)
    templates = _Templates([kind_of(module) for module in modules])
    _pass(model, blocks, batches[0], _Recorder(len(modules), _Pool(), templates), loaded)
    templates.learnt()
    if templates.real and loaded is not None:
        raise NotStreamableError(f"the blocks of {type(model).__name__} hand more to each other than a hidden state")
    captured = []
    for batch in batches:
        recorder = _Recorder(len(modules), pool, templates)
        _pass(model, blocks, batch, recorder, loaded)
        captured.append([recorder.calls[index] for index in range(len(modules))])
    return Captured(captured, tuple(templates.known[kind] for kind in templates.kinds))


def _pass(
    model: nn.Module, blocks: BlockList, batch: dict[str, torch.Tensor], recorder: _Recorder, loaded: Loaded | None
) -> None:
    extra = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    with _recording(model, blocks, recorder, loaded), torch.no_grad(), wide_products(model), suppress(_FinishedError):
        try:
            model(**batch, **extra)
        except (ValueError, TypeError, AttributeError, IndexError, RuntimeError) as error:
            if _is_the_machines(error):
                raise
            raise InputError(
                f"{type(model).__name__} cannot be run on {' and '.join(batch)} alone ({one_line(error)}): "
                "it cannot be walked"
            ) from error
    missing = [index for index in range(recorder.count) if index not in recorder.calls]
    if missing:
        raise InputError(f"block {missing[0]} was not called in a forward pass: such a model cannot be walked")


@contextmanager
def _recording(model: nn.Module, blocks: BlockList, recorder: _Recorder, loaded: Loaded | None) -> Iterator[None]:
    """Puts the recorder in the place of every block's forward, and takes it away again."""

    def recorded(index: int, forward: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            hidden = recorder.add(index, args, kwargs)
            template = recorder.templates.of(index)
            if template is not None:
                return recorder.finish(with_hidden(template, hidden))
            with nullcontext() if loaded is None else loaded(blocks.names[index]):
                output = forward(*args, **kwargs)
            hidden_of(output)
            recorder.templates.learn(index, output)
            return recorder.finish(output)

        return run

    modules = blocks.modules(model)
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


def _is_the_machines(error: Exception) -> bool:
    """Whether the machine failed and not the model: out of memory, a device, another process."""
    if isinstance(error, RuntimeError) and type(error) not in (RuntimeError, NotImplementedError):
        return True
    return "allocate memory" in str(error)


def kind_of(block: nn.Module) -> Hashable:
    """Equal for blocks that are built alike: their modules' classes, their parameters' names and shapes."""
    modules = tuple((name, type(module)) for name, module in block.named_modules())
    return modules, tuple((name, tuple(parameter.shape)) for name, parameter in block.named_parameters())


def _holds_other_tensors(output: Any) -> bool:
    others = output[1:] if isinstance(output, tuple | list) else ()
    return any(_holds_tensor(other) for other in others)


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
        self._of_pass: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def begin_pass(self) -> None:
        """Forgets which tensors the blocks of one pass were given: the same ones, mostly, which are compared once."""
        self._of_pass.clear()

    def share(self, value: Any) -> Any:
        """The value with its tensors replaced by equal ones seen before; a key-value cache becomes None."""
        if isinstance(value, Cache):
            return None
        if type(value) in (tuple, list):
            return type(value)(self.share(part) for part in value)
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) not in self._of_pass:
            self._of_pass[id(value)] = value, self._equal(value.detach())
        return self._of_pass[id(value)][1]

    def _equal(self, value: torch.Tensor) -> torch.Tensor:
        """A tensor that was seen before and holds the same, or this one."""
        known = self._known.setdefault((value.shape, value.dtype, value.device), [])
        for other in known:
            same_memory = other.data_ptr() == value.data_ptr() and other.stride() == value.stride()
            if same_memory or torch.equal(other, value):
                return other
        known.append(value)
        return value
