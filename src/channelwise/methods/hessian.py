"""The Hessian of a linear layer's squared output error, from sums over tokens.

With inputs x [tokens, channels] a change δ of one row of the weight changes that row's outputs by δ xᵀ, and their
squares add up to δ H δᵀ with H = Σ x xᵀ: everything that rounding needs to know of the calibration data.
"""

from dataclasses import dataclass

import torch

from channelwise.numerics.transform import ChannelTransform

BLOCK = 512
"""Channels whose products with all later ones are one matrix product."""


@dataclass(frozen=True)
class Hessian:
    """Sums over tokens: of x xᵀ, float32 [channels, channels], of x, float64 [channels], and of 1.

    All three are sums, so two parts of the data are joined by `+`.
    """

    matrix: torch.Tensor
    total: torch.Tensor
    tokens: int

    def __add__(self, other: "Hessian") -> "Hessian":
        """That of both parts of the data."""
        return Hessian(self.matrix + other.matrix, self.total + other.total, self.tokens + other.tokens)

    def transformed(self, transform: ChannelTransform) -> "Hessian":
        """That of (x − shift) / scale.

        A shift by many times a channel's spread takes off nearly all of its sum of squares: computed in float64, what
        is lost is no more than the rounding of `matrix` to float32.
        """
        if transform.is_identity:
            return self
        matrix, total = self.matrix.double(), self.total.double()
        if transform.shift is not None:
            shift = transform.shift.to(matrix)
            # H − z mᵀ − m zᵀ + n z zᵀ, its last term halved between the other two.
            half = total - shift * (self.tokens / 2)
            matrix.addr_(shift, half, alpha=-1).addr_(half, shift, alpha=-1)
            total = total - self.tokens * shift
        if transform.scale is not None:
            scale = transform.scale.to(matrix)
            matrix.div_(scale).div_(scale[:, None])
            total = total / scale
        return Hessian(matrix.float(), total, self.tokens)


@dataclass
class HessianBuilder:
    """Gathers the Hessian of one site's input batch by batch; memory is one matrix, whatever the data."""

    channels: int
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        self.matrix = torch.zeros(self.channels, self.channels, device=self.device)
        self.total = torch.zeros(self.channels, dtype=torch.float64, device=self.device)
        self.tokens = 0

    def update(self, x: torch.Tensor) -> None:
        """Add one batch [..., tokens, channels] of any float dtype."""
        x = x.detach().reshape(-1, self.channels).to(self.device, torch.float32)
        for start, end in self._blocks():
            # What lies below the diagonal blocks is the mirror image of what lies above.
            self.matrix[start:end, start:].addmm_(x[:, start:end].t(), x[:, start:])
        self.total += x.sum(dim=0).double()
        self.tokens += len(x)

    def finish(self) -> Hessian:
        """The Hessian so far; it shares the builder's memory. Raises ValueError if no token was seen."""
        if self.tokens == 0:
            raise ValueError("no tokens were seen")
        for start, end in self._blocks():
            self.matrix[end:, start:end] = self.matrix[start:end, end:].t()
        return Hessian(self.matrix, self.total, self.tokens)

    def _blocks(self) -> list[tuple[int, int]]:
        return [(at, min(at + BLOCK, self.channels)) for at in range(0, self.channels, BLOCK)]


def output_error(hessian: Hessian, change: torch.Tensor) -> float:
    """The squared change of a layer's outputs, sum over features, mean over tokens: Σ_k δ_k H δ_kᵀ / tokens.

    change: Ŵ − W [out_features, channels], any float dtype. Computed in float64, as large terms may cancel.
    """
    wide = change.double()
    total = (wide @ hessian.matrix.double()).mul_(wide).sum()
    # What is never negative is kept from becoming so by rounding.
    return float(total.clamp(min=0.0)) / hessian.tokens
