"""Looking into a running module: captured inputs, early stops, stand-ins for a layer's computation."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import nn

InputObserver = Callable[[str, torch.Tensor], None]


class _SeenEnough(Exception):  # noqa: N818 (it is no error: it ends a run early)
    """Ends a forward pass once everything that was wanted has been seen."""


@contextmanager
def observed_inputs(root: nn.Module, names: Sequence[str], observer: InputObserver) -> Iterator[None]:
    """Calls observer(name, input) whenever one of the named modules is about to run."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        return lambda module, args, kwargs: observer(name, args[0] if args else next(iter(kwargs.values())))

    handles = [root.get_submodule(n).register_forward_pre_hook(hook(n), with_kwargs=True) for n in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run_until_seen(run: Callable[[], Any], root: nn.Module, names: Sequence[str], observer: InputObserver) -> None:
    """Runs until every named module has got its input (once at least), then stops.

    A module that is never called (an expert without tokens) means that the run goes on to its end.
    """
    missing = set(names)

    def observe(name: str, x: torch.Tensor) -> None:
        observer(name, x)
        missing.discard(name)
        if not missing:
            raise _SeenEnough

    with observed_inputs(root, names, observe), suppress(_SeenEnough):
        run()


@contextmanager
def stand_ins(root: nn.Module, forwards: dict[str, Callable[[torch.Tensor], torch.Tensor]]) -> Iterator[None]:
    """Lets the named modules compute something else for a while."""
    with ExitStack() as stack:
        for name, forward in forwards.items():
            module = root.get_submodule(name)
            module.forward = forward
            stack.callback(delattr, module, "forward")
        yield


def captured_call(run: Callable[[], Any], root: nn.Module, name: str) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The arguments with which the named module ("" for the root) is called first; None if it never is."""
    found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append((args, kwargs))
        raise _SeenEnough

    handle = root.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True)
    try:
        with suppress(_SeenEnough):
            run()
    finally:
        handle.remove()
    return found[0] if found else None
