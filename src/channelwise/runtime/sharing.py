"""Layers with the same input, such as q, k and v, quantize it once."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True)
class _Seen:
    """Codes, of which tensor in which state, and which layers have taken them."""

    x: weakref.ref[torch.Tensor]
    version: int
    recorded: bool
    codes: Any
    takers: set[int]


class SharedInput:
    """The codes of the input that was seen last, for as long as that input lives."""

    def __init__(self) -> None:
        """Nothing seen yet."""
        self._last: _Seen | None = None

    def bytes_of(self, x: torch.Tensor, taker: object, find: Callable[[], Any]) -> Any:
        """The codes of x for a layer, `taker`: found anew unless they are those of the same tensor, unchanged.

        A layer that asks twice begins another forward, for which a CUDA graph may have changed x without a word; and
        what is recorded into a graph has to be computed in it.
        """
        last, recorded = self._last, x.is_cuda and torch.cuda.is_current_stream_capturing()
        if (
            last is not None
            and last.x() is x
            and last.version == x._version
            and last.recorded == recorded
            and id(taker) not in last.takers
        ):
            last.takers.add(id(taker))
            return last.codes
        found = find()
        self._last = _Seen(weakref.ref(x, self._forget), x._version, recorded, found, {id(taker)})
        return found

    def _forget(self, gone: object) -> None:
        last = self._last
        if last is not None and last.x is gone:
            self._last = None
