"""The processes that quantize one model together, and what they do together; a process alone does nothing for it."""

import contextlib
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist

from channelwise.engine.heartbeat import Heartbeat
from channelwise.errors import InputError

_PIECE = 2**24
"""Elements that are summed at once: the transport needs a buffer of the same size."""
_SUMMED = (torch.float32, torch.float64, torch.int32, torch.int64)
"""What every transport sums; other types are summed in the wider one of their kind."""


class ToldByRankZero(InputError):  # noqa: N818 - it is an error only for this process
    """Bad input that all ranks have agreed on; rank 0 tells it, so this process prints nothing.

    The exit status is that of the error.
    """

    quiet = True


_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Links:
    """What connects this process to the others."""

    group: dist.ProcessGroup
    heartbeat: Heartbeat


@dataclass(frozen=True)
class World:
    """Which of how many processes this one is. All of them call the same methods in the same order.

    With `size` 1 every method gives back what it was given, without a copy.

    device: where tensors are when they are exchanged (gloo: the CPU; nccl: this process's GPU); those of other
    devices are moved there and back. All methods that exchange something raise RankLostError if another process of
    the run has stopped.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = _CPU
    links: Links | None = field(default=None, repr=False, compare=False)

    def share(self, costs: Sequence[float]) -> range:
        """This rank's share of items with these costs (not negative): contiguous, the same division on every rank.

        An item belongs to the rank in whose part of the total cost its middle lies, so a share costs at most its
        part and one item more. Shares may be empty.
        """
        ends = list(accumulate(costs))
        if not ends or ends[-1] <= 0:
            ends = [float(index + 1) for index in range(len(costs))]
            costs = [1.0] * len(costs)
        middles = (end - cost / 2 for end, cost in zip(ends, costs, strict=True))
        owners = [min(int(middle / ends[-1] * self.size), self.size - 1) for middle in middles]
        return range(_count_below(owners, self.rank), _count_below(owners, self.rank + 1))

    def rows(self, count: int, multiple: int = 1) -> slice:
        """This rank's contiguous share of `count` rows, cut at multiples of `multiple` only; may be empty."""
        pieces = -(-count // multiple)
        start, stop = (pieces * rank // self.size * multiple for rank in (self.rank, self.rank + 1))
        return slice(min(start, count), min(stop, count))

    def total(self, tensor: torch.Tensor, *, in_place: bool = False) -> torch.Tensor:
        """The element-wise sum over the ranks, bitwise the same on all; any shape, the same on every rank.

        16-bit and 8-bit numbers are summed in 32 or 64 bits and rounded once. in_place: into the tensor's own memory
        (which must be contiguous), which spares a second copy of a large one.
        """
        if self.size == 1 or tensor.numel() == 0:
            return tensor
        summed = tensor.to(self.device, _sum_dtype(tensor.dtype)).contiguous()
        if summed.data_ptr() == tensor.data_ptr() and not in_place:
            summed = summed.clone()
        group, heartbeat = self._connected()
        with heartbeat.collective():
            for piece in summed.view(-1).split(_PIECE):
                dist.all_reduce(piece, group=group)
            self._finished()
        if not in_place:
            return summed.to(tensor.device, tensor.dtype)
        return tensor if summed.data_ptr() == tensor.data_ptr() else tensor.copy_(summed)

    def minimum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The element-wise minimum over the ranks; NaN where any rank has NaN."""
        return self._folded(tensor, torch.minimum)

    def maximum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The element-wise maximum over the ranks; NaN where any rank has NaN."""
        return self._folded(tensor, torch.maximum)

    def totals(self, numbers: Sequence[float]) -> list[float]:
        """Sums over the ranks, added in float64 in the order of the ranks: bitwise the same on all."""
        if self.size == 1:
            return list(numbers)
        parts = self._parts(torch.tensor(numbers, dtype=torch.float64))
        return reduce(torch.add, parts).tolist()

    def joined(self, tensor: torch.Tensor) -> torch.Tensor:
        """The ranks' tensors one behind the other along dim 0; any dtype.

        Their lengths may differ and be 0; their other dimensions are the same.
        """
        if self.size == 1:
            return tensor
        lengths = [int(length) for length in self._parts(torch.tensor([tensor.shape[0]]))]
        whole = tensor.new_empty((sum(lengths), *tensor.shape[1:]), device=self.device)
        parts = whole.split(lengths)
        parts[self.rank].copy_(tensor)
        group, heartbeat = self._connected()
        with heartbeat.collective():
            pending = [
                dist.broadcast(_as_bytes(part), group_src=source, group=group, async_op=True)
                for source, part in enumerate(parts)
                if part.numel()
            ]
            for work in pending:
                work.wait()
            self._finished()
        return whole.to(tensor.device)

    def gathered(self, thing: Any) -> list[Any]:
        """What each rank gives, in the order of the ranks; anything that can be pickled, small."""
        if self.size == 1:
            return [thing]
        things: list[Any] = [None] * self.size
        group, heartbeat = self._connected()
        with heartbeat.collective():
            dist.all_gather_object(things, thing, group=group)
        return things

    @contextlib.contextmanager
    def agree(self) -> Iterator[None]:
        """Around work that may fail on some ranks: an InputError on any becomes one on all.

        Rank 0 raises the first of them (in the order of the ranks), the others `ToldByRankZero`.
        """
        if self.size == 1:
            yield
            return
        own: InputError | None = None
        try:
            yield
        except InputError as error:
            own = error
        errors = self.gathered(_portable(own))
        source = next((rank for rank, error in enumerate(errors) if error is not None), None)
        if source is None:
            return
        heartbeat = self._connected()[1]
        heartbeat.agreed = True
        if self.rank > 0:
            raise ToldByRankZero(str(errors[source])) from own
        raise own or _from_host(errors[source], heartbeat.hosts[source], heartbeat.hosts[0])

    def barrier(self) -> None:
        """Returns when every rank has called it."""
        if self.size > 1:
            self._parts(torch.zeros(1))

    def _connected(self) -> tuple[dist.ProcessGroup, Heartbeat]:
        if self.links is None:
            raise ValueError(f"a world of {self.size} ranks needs links; joined_world makes them")
        return self.links.group, self.links.heartbeat

    def _finished(self) -> None:
        """On a GPU a collective has only been queued when its call returns."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _parts(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Every rank's tensor, of one and the same shape and dtype on all."""
        if tensor.numel() == 0:
            return [tensor] * self.size
        own = _as_bytes(tensor.to(self.device).contiguous())
        parts = [torch.empty_like(own) for _ in range(self.size)]
        group, heartbeat = self._connected()
        with heartbeat.collective():
            dist.all_gather(parts, own, group=group)
            self._finished()
        return [part.view(tensor.dtype).view(tensor.shape).to(tensor.device) for part in parts]

    def _folded(self, tensor: torch.Tensor, fold: Callable[..., torch.Tensor]) -> torch.Tensor:
        return tensor if self.size == 1 else reduce(fold, self._parts(tensor))


ALONE = World()
"""The one process of an ordinary run."""


def _count_below(owners: Sequence[int], rank: int) -> int:
    return sum(owner < rank for owner in owners)


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    if dtype in _SUMMED:
        return dtype
    return torch.float32 if dtype.is_floating_point else torch.int64


def _as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The memory of a contiguous tensor: every transport carries bytes, not every one all dtypes."""
    return tensor.view(-1).view(torch.uint8)


def _portable(error: InputError | None) -> InputError | None:
    """The error, if it survives pickling; else its message as a plain InputError."""
    if error is None:
        return None
    try:
        copied = pickle.loads(pickle.dumps(error))
    except Exception:
        return InputError(str(error))
    return error if str(copied) == str(error) else InputError(str(error))


def _from_host(error: InputError, host: str, here: str) -> InputError:
    """The error of another rank, with its machine where that is another one: a path may be missing only there."""
    if host != here and error.args == (str(error),):
        error.args = (f"{error} (on {host})",)
    return error
