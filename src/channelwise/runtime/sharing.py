"""Layers with the same input, such as q, k and v, quantize it once."""

import weakref
from collections.abc import Callable
from typing import Any

import torch


class SharesCodes:
    """An execution in two steps: the codes of its input, which others may share, and the product with them."""

    def bytes_of(self, x: torch.Tensor) -> Any:
        """The codes of x [tokens, in_features], with what belongs to them."""
        raise NotImplementedError

    def product(self, inputs: Any, dtype: torch.dtype) -> torch.Tensor:
        """The layer's output [tokens, out_features] for codes that are there already."""
        raise NotImplementedError


class SharedInput:
    """The codes of the input that was seen last, for as long as that input lives."""

    def __init__(self) -> None:
        """Nothing seen yet."""
        self._last: tuple[weakref.ref[torch.Tensor], int, Any] | None = None

    def bytes_of(self, x: torch.Tensor, find: Callable[[], Any]) -> Any:
        """The codes of x, found anew unless they are those of the same tensor, unchanged."""
        last = self._last
        if last is not None and last[0]() is x and last[1] == x._version:
            return last[2]
        found = find()
        self._last = (weakref.ref(x, self._forget), x._version, found)
        return found

    def _forget(self, gone: object) -> None:
        last = self._last
        if last is not None and last[0] is gone:
            self._last = None
