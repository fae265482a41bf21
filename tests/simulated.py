"""A GPU for tests on machines without one: tensors that say they are on "cuda" and compute their values on the CPU.

As on a GPU, tensors of two devices do not meet in one operation (but for single numbers of the CPU's), and new tensors
are on the CPU unless a device is named. Whatever makes the host wait for the device is counted: values that are read,
sizes that depend on values, copies from one to the other.
"""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import channelwise

PACKAGE = f"{Path(channelwise.__file__).parent}{os.sep}"

DEVICE = torch.device("cuda", 0)

aten = torch.ops.aten
READING = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.multinomial.default,
}
COPYING = {aten._to_copy.default, aten.copy_.default}
# Views, and memory without values: nothing runs on the device.
FREE = {
    aten.view.default,
    aten._unsafe_view.default,
    aten.slice.Tensor,
    aten.select.int,
    aten.unsqueeze.default,
    aten.t.default,
    aten.transpose.int,
    aten.detach.default,
    aten.alias.default,
    aten.expand.default,
    aten.split.Tensor,
    aten.unbind.int,
    aten.diagonal.default,
    aten.permute.default,
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.squeeze.dim,
    aten.split_with_sizes.default,
    aten.empty_strided.default,
    aten.view.dtype,
    aten.new_empty.default,
    aten.as_strided.default,
}
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}


class OnDevice(torch.Tensor):
    """A tensor on the simulated device; `values` has what it holds, in the same memory layout."""

    values: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> "OnDevice":
        made = torch.Tensor._make_wrapper_subclass(
            cls, values.shape, strides=values.stride(), storage_offset=values.storage_offset(),
            dtype=values.dtype, device=DEVICE,
        )  # fmt: skip
        made.values = values
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of the simulation")

    def data_ptr(self) -> int:
        return self.values.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.values.untyped_storage()

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __getitem__(self, index: Any) -> torch.Tensor:
        view, indices = _sliced(self, index)
        return aten.index.Tensor(view, indices) if indices else view

    def __setitem__(self, index: Any, value: Any) -> None:
        view, indices = _sliced(self, index)
        if not isinstance(value, torch.Tensor):
            value = aten.full_like.default(view.flatten()[:1].sum(), value)
        if indices:
            aten.index_put_.default(view, indices, value.to(self.dtype))
        else:
            aten.copy_.default(view, value)

    def contiguous(self, memory_format: torch.memory_format = torch.contiguous_format) -> torch.Tensor:
        return self if self.is_contiguous() else self.clone(memory_format=memory_format)

    def __invert__(self) -> torch.Tensor:
        return aten.bitwise_not.default(self)

    def copy_(self, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        return aten.copy_.default(self, source, non_blocking)

    def __deepcopy__(self, memo: dict[int, Any]) -> "OnDevice":
        if id(self) not in memo:
            copied = OnDevice(self.values.clone())
            memo[id(self)] = nn.Parameter(copied, requires_grad=False) if isinstance(self, nn.Parameter) else copied
        return memo[id(self)]


class Simulation(TorchDispatchMode):
    """Within it, tensors can be on the device.

    waits: how often the host waited for it, by the package's function that asked. kernels: what ran on it, by
    operation.
    """

    device = DEVICE

    def __init__(self) -> None:
        super().__init__()
        # Otherwise torch would look for a real GPU wherever "cuda" is named.
        self._mode_key = torch._C._TorchDispatchModeKey.FAKE
        torch._C._ensureCUDADeviceGuardSet()
        self.waits: Counter[str] = Counter()
        self.kernels: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors: list[torch.Tensor] = []
        _mapped((args, kwargs), lambda tensor: tensors.append(tensor))
        there = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
        wanted = kwargs.get("device")
        if wanted is not None:
            wanted = torch.device(wanted)
            kwargs["device"] = torch.device("cpu") if wanted.type == "cuda" else wanted
        self._check(func, tensors, there)
        self._count(func, args, kwargs, there, wanted)
        result = func(*_plain(args), **_plain(kwargs))
        goes = wanted.type == "cuda" if wanted is not None else bool(there)
        if func._schema.is_mutable and func._schema.name[-1] == "_":
            return args[0]
        if func._schema.is_mutable and "out" in kwargs:
            return kwargs["out"]
        return _mapped(result, OnDevice) if goes else result

    def _check(self, func: Any, tensors: list[torch.Tensor], there: list[torch.Tensor]) -> None:
        if not there or func in COPYING or func in INDEXING:
            return
        here = [tensor for tensor in tensors if not isinstance(tensor, OnDevice) and tensor.dim() > 0]
        if here:
            raise RuntimeError(f"{func}: tensors on cuda and {here[0].device}")

    def _count(self, func: Any, args: Any, kwargs: Any, there: list[torch.Tensor], wanted: torch.device | None) -> None:
        goes = wanted is not None and wanted.type == "cuda"
        if there or goes:
            self.kernels[str(func)] += func not in FREE
            if _waits(func, args, kwargs, bool(there), goes, wanted):
                self.waits[_place()] += 1


def _waits(func: Any, args: Any, kwargs: Any, there: bool, goes: bool, wanted: torch.device | None) -> bool:
    """Whether the host waits for the device before this operation is done."""
    if func is aten._to_copy.default:
        # What the host hands over without waiting is copied aside first.
        return wanted is not None and goes != there and not (goes and kwargs.get("non_blocking", False))
    if func is aten.copy_.default:
        return isinstance(args[0], OnDevice) != isinstance(args[1], OnDevice)
    if func in INDEXING:
        indices = [index for index in args[1] if index is not None]
        return any(_is_mask(index) or not isinstance(index, OnDevice) for index in indices)
    return func in READING


def _place() -> str:
    """The package's function that is running."""
    frame = sys._getframe(1)
    while frame is not None and PACKAGE not in frame.f_code.co_filename:
        frame = frame.f_back  # type: ignore[assignment]
    if frame is None:
        return "elsewhere"
    return f"{frame.f_code.co_filename.partition(PACKAGE)[2]}: {frame.f_code.co_name}"


def _sliced(tensor: torch.Tensor, index: Any) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """What torch's own indexing does, which asks for a real GPU: a view, and the tensors that index it further."""
    parts = list(index) if isinstance(index, tuple) else [index]
    taken = sum(part.dim() if _is_mask(part) else 1 for part in parts if part is not None and part is not ...)
    if ... in [part for part in parts if not isinstance(part, torch.Tensor)]:
        place = next(place for place, part in enumerate(parts) if part is ...)
        parts[place : place + 1] = [slice(None)] * (tensor.dim() - taken)
    dim, indices = 0, []
    for part in parts:
        if part is None:
            tensor = aten.unsqueeze.default(tensor, dim)
        elif isinstance(part, int):
            tensor = aten.select.int(tensor, dim, part)
            continue
        elif isinstance(part, slice):
            start, stop, step = part.indices(tensor.shape[dim])
            tensor = aten.slice.Tensor(tensor, dim, start, max(start, stop), step)
        else:
            indices += [None] * (dim - len(indices)) + [part]
            dim += part.dim() - 1 if _is_mask(part) else 0
        dim += 1
    return tensor, indices


def _is_mask(part: Any) -> bool:
    return isinstance(part, torch.Tensor) and part.dtype == torch.bool


def _plain(tree: Any) -> Any:
    return _mapped(tree, lambda tensor: tensor.values if isinstance(tensor, OnDevice) else tensor)


def _mapped(tree: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """Tensors changed, in whatever they stand."""
    if isinstance(tree, torch.Tensor):
        return change(tree)
    if type(tree) in (tuple, list):
        return type(tree)([_mapped(part, change) for part in tree])
    if type(tree) is dict:
        return {name: _mapped(part, change) for name, part in tree.items()}
    return tree


@contextmanager
def simulated_device() -> Iterator[Simulation]:
    """Tensors can be on the simulated device within."""
    with torch.no_grad(), Simulation() as simulation:
        yield simulation


def recorder(simulation: Simulation, device: torch.device) -> Callable[[Callable[[], None]], Callable[[], None]] | None:
    """Records as a real one would, which cannot while the host waits; operations run when they are replayed."""

    def record(run: Callable[[], None]) -> Callable[[], None]:
        waited = simulation.waits.total()
        run()
        assert simulation.waits.total() == waited, "what makes the host wait cannot be recorded"
        return run

    return record if device.type == "cuda" else None


def on_device(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the device."""
    return OnDevice(tensor.detach().clone())


def move(model: nn.Module) -> None:
    """Moves a model onto the device; what is tied stays tied."""
    known: dict[int, Any] = {}
    for module in model.modules():
        move_own(module, DEVICE, known)


def move_own(module: nn.Module, device: torch.device, known: dict[int, Any] | None = None) -> None:
    """Moves a module's own parameters and buffers onto the device, those on the meta device aside.

    Here they take the place of the old ones; a real device's would be put into the same parameters. known: what has
    been moved already.
    """
    known = {} if known is None else known
    for name, parameter in module._parameters.items():
        if parameter is not None and not parameter.is_meta:
            moved = known.setdefault(id(parameter), nn.Parameter(parameter.detach().to(device), requires_grad=False))
            module._parameters[name] = moved
    for name, buffer in module._buffers.items():
        if buffer is not None and not buffer.is_meta:
            module._buffers[name] = known.setdefault(id(buffer), buffer.to(device))


def values_of(tree: Any) -> Any:
    """The same with the values of tensors that are on the device."""
    return _plain(tree)
