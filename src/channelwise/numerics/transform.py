"""The channel transform, X̃ = (X − shift) / scale: exact in real arithmetic whatever shift and scale > 0."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ChannelTransform:
    """Shift and scale of a site's input channels, float32 or float64 [channels]; None stands for the identity.

    Source: Outlier Suppression+ (arXiv 2304.09145, eq. 3 and 5); the other methods are choices of the same two vectors.
    """

    shift: torch.Tensor | None = None
    scale: torch.Tensor | None = None

    @property
    def is_identity(self) -> bool:
        """Whether neither part is there."""
        return self.shift is None and self.scale is None

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """(x − shift) / scale along the last dimension, in the wider dtype of x and the vectors."""
        if self.shift is not None:
            x = x - self.shift
        if self.scale is not None:
            x = x / self.scale
        return x

    def undo(self, x: torch.Tensor) -> torch.Tensor:
        """x · scale + shift, the inverse of `apply`."""
        if self.scale is not None:
            x = x * self.scale
        if self.shift is not None:
            x = x + self.shift
        return x

    def fold_weight(self, weight: torch.Tensor) -> torch.Tensor:
        """W · diag(scale); weight [out_features, in_features], at least float32 (float16 would make subnormals)."""
        return weight if self.scale is None else weight * self.scale

    def fold_bias(self, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor | None:
        """b + W·shift with the weight before scaling; [out_features], or None where there is neither."""
        if self.shift is None:
            return bias
        moved = weight @ self.shift.to(weight.dtype)
        return moved if bias is None else bias + moved
