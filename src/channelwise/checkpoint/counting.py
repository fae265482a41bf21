"""How much of a model is quantized, counted without reading a weight."""

from collections.abc import Iterable
from dataclasses import astuple, dataclass

import torch
from torch import nn

from channelwise.runtime.embedding import QuantizedEmbedding
from channelwise.runtime.linear import QuantizedLinear


@dataclass(frozen=True)
class Counted:
    """Of a model or a part of it; parts add up.

    linears, embeddings: the quantized ones. entries, embedding_entries: numbers in their weights; weight_bytes,
    embedding_bytes: what these take with their scales. tensor_bytes: of all tensors.
    """

    linears: int = 0
    entries: int = 0
    weight_bytes: int = 0
    embeddings: int = 0
    embedding_entries: int = 0
    embedding_bytes: int = 0
    tensor_bytes: int = 0

    def __add__(self, other: "Counted") -> "Counted":
        return Counted(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def bits_per_weight(self) -> float:
        """Stored bits of the quantized linear layers over the number of their weights, 0 where there are none."""
        return 8.0 * self.weight_bytes / max(self.entries, 1)

    @property
    def bits_per_embedding(self) -> float:
        """The same of embeddings."""
        return 8.0 * self.embedding_bytes / max(self.embedding_entries, 1)


def counted(modules: Iterable[nn.Module], tensors: Iterable[torch.Tensor] = ()) -> Counted:
    """Counts the quantized layers among modules, and the bytes of tensors; both may be on the meta device."""
    parts = set(modules)
    layers = [part for part in parts if isinstance(part, QuantizedLinear)]
    tables = [part for part in parts if isinstance(part, QuantizedEmbedding)]
    return Counted(
        linears=len(layers),
        entries=sum(layer.weight.numel() for layer in layers),
        weight_bytes=sum(layer.weight_bytes() for layer in layers),
        embeddings=len(tables),
        embedding_entries=sum(table.weight.numel() for table in tables),
        embedding_bytes=sum(table.weight_bytes() for table in tables),
        tensor_bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
    )
