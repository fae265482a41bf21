"""QuantizedEmbedding: a table kept as packed codes, of which only the rows asked for are decoded."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from channelwise.numerics.quantizer import Parameters, decode
from channelwise.runtime.layout import fitted, weight_layout, weight_parameters, weight_parts
from channelwise.runtime.packing import unpack
from channelwise.runtime.scheme import EmbeddingScheme


class QuantizedEmbedding(nn.Module):
    """Row i of the table for every id i, in the scheme's dtype, which follows `.to(dtype)` of the model.

    Buffers, under these names in a checkpoint: weight_packed uint8 [rows, bytes]; weight_scale and, for grids
    with zero points, weight_zero_point as in `QuantizedLinear`. They keep their dtypes.
    """

    weight_packed: torch.Tensor
    weight_scale: torch.Tensor
    weight_zero_point: torch.Tensor | None

    padding_idx: int | None = None

    def __init__(self, scheme: EmbeddingScheme, device: torch.device | str | None = None) -> None:
        """Zeroed buffers of the scheme's shapes on `device`, which may be "meta"."""
        super().__init__()
        self.scheme = scheme
        for name, layout in weight_layout((scheme.rows, scheme.columns), scheme.weights).items():
            empty = None if layout is None else torch.zeros(layout[0], dtype=layout[1], device=device)
            self.register_buffer(name, empty)

    @classmethod
    def from_parts(cls, scheme: EmbeddingScheme, codes: torch.Tensor, parameters: Parameters) -> "QuantizedEmbedding":
        """The table of given codes, int16 [rows, columns] as `numerics.encode` gives them, on their device.

        Raises ValueError if a part is missing, superfluous or of the wrong shape.
        """
        parts = weight_parts(codes, parameters, scheme.weights)
        table = cls(scheme, device="meta")
        for name, layout in weight_layout((scheme.rows, scheme.columns), scheme.weights).items():
            setattr(table, name, fitted(name, parts[name], layout, codes.device))
        return table

    @property
    def num_embeddings(self) -> int:
        """The number of rows."""
        return self.scheme.rows

    @property
    def embedding_dim(self) -> int:
        """The length of a row."""
        return self.scheme.columns

    @property
    def dtype(self) -> torch.dtype:
        """What the rows come out in."""
        dtype: torch.dtype = getattr(torch, self.scheme.dtype)
        return dtype

    @property
    def weight(self) -> torch.Tensor:
        """The table's shape, dtype and device without its values: NaN throughout, in the memory of one number.

        transformers' models ask their embeddings for it, some to put ids on its device.
        """
        stand_in = torch.full((), torch.nan, dtype=self.dtype, device=self.weight_scale.device)
        table = stand_in.expand(self.num_embeddings, self.embedding_dim)
        # What transformers reads before it initialises a weight at random, as T5 does with a shared table.
        table._is_hf_initialized = True  # type: ignore[attr-defined]
        return table

    @torch.no_grad()
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids: integers of any shape. Returns [..., columns] in the table's dtype, on its device; without gradients."""
        return self._rows(ids.reshape(-1)).to(self.dtype).reshape(*ids.shape, self.embedding_dim)

    def dequantized_weight(self) -> torch.Tensor:
        """The values of the codes, float32 [rows, columns]."""
        return self._rows(torch.arange(self.num_embeddings, device=self.weight_packed.device))

    def weight_bytes(self) -> int:
        """Bytes of the stored table: codes, scales and zero points."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.buffers())

    def extra_repr(self) -> str:
        """Sizes and schemes, for print(model)."""
        weights = self.scheme.weights
        return f"{self.num_embeddings}, {self.embedding_dim}, weights={weights.grid} per {weights.granularity.kind}"

    def _rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Decoded rows, float32, of ids [n]."""
        weights = self.scheme.weights
        # Unlike an index in brackets, this refuses ids below 0.
        packed, scale = self.weight_packed.index_select(0, ids), self.weight_scale.index_select(0, ids)
        zero_point = None if self.weight_zero_point is None else self.weight_zero_point.index_select(0, ids)
        codes = unpack(packed, weights.grid.bits, self.embedding_dim).to(torch.int16) + weights.grid.lowest
        parameters = weight_parameters(scale, zero_point, weights)
        return decode(codes, parameters, weights.grid, weights.granularity)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "QuantizedEmbedding":
        def kept(tensor: torch.Tensor) -> torch.Tensor:
            result = fn(tensor)
            return result if result.dtype == tensor.dtype else tensor.to(result.device)

        dtype = fn(torch.empty(0, dtype=self.dtype, device=self.weight_scale.device)).dtype
        self.scheme = replace(self.scheme, dtype=str(dtype).removeprefix("torch."))
        super()._apply(kept, recurse)
        return self
