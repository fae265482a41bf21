"""Stored tensors as views of their files, mapped privately.

Whole files are never mapped: a private mapping larger than the machine's memory is refused by the system.
"""

import mmap
from collections.abc import Iterator, Mapping

import torch

from channelwise.model.stored import PIECE, StoredTensor, check_end

MAPPINGS = 64
"""About how many mappings one call makes at most: each holds a file descriptor."""
SMALL = 2**16
"""Bytes of a vector up to which it is copied, so that a norm does not keep its neighbour's mapping in memory."""


def mapped(tensors: Mapping[str, StoredTensor]) -> dict[str, torch.Tensor]:
    """The tensors as views of their mapped files: private, so that writing into one changes no file.

    Neighbours share a mapping, which lasts as long as one of them lives. Short vectors are copied, what cannot be
    mapped is read. Raises InputError if a file has become shorter.
    """
    largest = max(PIECE, sum(tensor.size for tensor in tensors.values()) // MAPPINGS)
    views = {name: tensor.read() for name, tensor in tensors.items() if not tensor.size}
    for run in _runs({name: tensor for name, tensor in tensors.items() if tensor.size}, largest):
        views |= _mapped_run({name: tensors[name] for name in run})
    return views


def _runs(tensors: Mapping[str, StoredTensor], largest: int) -> Iterator[list[str]]:
    """Names of tensors that lie close together in one file: runs end once they are `largest` bytes long."""
    run: list[str] = []
    for name in sorted(tensors, key=lambda key: (str(tensors[key].path), tensors[key].start)):
        first, last = (tensors[run[0]], tensors[run[-1]]) if run else (tensors[name], tensors[name])
        is_far = tensors[name].start - last.end > PIECE or tensors[name].path != last.path
        if run and (is_far or last.end - first.start >= largest):
            yield run
            run = []
        run.append(name)
    if run:
        yield run


def _mapped_run(run: Mapping[str, StoredTensor]) -> dict[str, torch.Tensor]:
    ordered = list(run.values())
    first, end = ordered[0], max(tensor.end for tensor in ordered)
    begin = first.start - first.start % mmap.ALLOCATIONGRANULARITY
    with first.path.open("rb") as file:
        check_end(file.fileno(), max(ordered, key=lambda tensor: tensor.end))
        try:
            memory = mmap.mmap(file.fileno(), end - begin, access=mmap.ACCESS_COPY, offset=begin)
        except OSError:  # a file system without mappings, or too many files are open
            return {name: tensor.read() for name, tensor in run.items()}
    raw = torch.frombuffer(memory, dtype=torch.uint8)
    return {name: _shaped(raw[tensor.start - begin : tensor.end - begin], tensor) for name, tensor in run.items()}


def _shaped(raw: torch.Tensor, stored: StoredTensor) -> torch.Tensor:
    """Bytes as the tensor that they are; copied only where they are a short vector's or lie askew.

    Matrices keep their place in the page: libraries add their products up in an order that depends on it.
    """
    if (len(stored.shape) == 1 and stored.size <= SMALL) or raw.data_ptr() % stored.dtype.itemsize:
        raw = raw.clone()
    return raw.view(stored.dtype).view(stored.shape)
