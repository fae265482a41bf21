"""The Hessian of a linear layer's squared output error, from sums over tokens.

With inputs x [tokens, channels] a change δ of one row of the weight changes that row's outputs by δ xᵀ, and their
squares add up to δ H δᵀ with H = Σ x xᵀ: everything that rounding needs to know of the calibration data.
"""

from dataclasses import dataclass

import torch

from channelwise.numerics.transform import ChannelTransform

BLOCK = 512
"""Channels whose products with all later ones are one matrix product; sums of so many products are float32."""

ROWS = 1024
"""Rows of a weight whose change is looked at together."""

ROUNDING = 2.0**-24
"""The largest relative error of one float32 operation."""

TOLERANCE = 1e-3
"""The relative error of an output error up to which float32 products are good enough."""


@dataclass(frozen=True)
class Hessian:
    """Sums over tokens: of x xᵀ, float32 [channels, channels], of x, float64 [channels], and of 1.

    The matrix is symmetric, and only what it has on and above its diagonal counts: a factor may lie below. All three
    are sums, so two parts of the data are joined by `+`.
    """

    matrix: torch.Tensor
    total: torch.Tensor
    tokens: int

    def __add__(self, other: "Hessian") -> "Hessian":
        """That of both parts of the data."""
        return Hessian(self.matrix + other.matrix, self.total + other.total, self.tokens + other.tokens)

    def transform_(self, transform: ChannelTransform) -> "Hessian":
        """That of (x − shift) / scale, in the memory of this one's matrix, which is of no more use.

        A shift by many times a channel's spread takes off nearly all of its sum of squares: computed in float64, what
        is lost is no more than the rounding of `matrix` to float32. Some of its rows are in float64 at a time.
        """
        if transform.is_identity:
            return self
        total = self.total.double()
        shift = None if transform.shift is None else transform.shift.to(total)
        scale = None if transform.scale is None else transform.scale.to(total)
        for start, end in blocks(len(self.matrix)):
            rows = self.matrix[start:end, start:].double()
            if shift is not None:
                # H − z mᵀ − m zᵀ + n z zᵀ, its last term halved between the other two.
                half = total - shift * (self.tokens / 2)
                rows.addr_(shift[start:end], half[start:], alpha=-1).addr_(half[start:end], shift[start:], alpha=-1)
            if scale is not None:
                rows.div_(scale[start:]).div_(scale[start:end, None])
            self.matrix[start:end, start:] = rows
        if shift is not None:
            total = total - self.tokens * shift
        return Hessian(self.matrix, total if scale is None else total / scale, self.tokens)


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
        for start, end in blocks(self.channels):
            # What lies below the diagonal is the mirror image of what lies above.
            self.matrix[start:end, start:].addmm_(x[:, start:end].t(), x[:, start:])
        self.total += x.sum(dim=0).double()
        self.tokens += len(x)

    def finish(self) -> Hessian:
        """The Hessian so far; it shares the builder's memory. Raises ValueError if no token was seen."""
        if self.tokens == 0:
            raise ValueError("no tokens were seen")
        return Hessian(self.matrix, self.total, self.tokens)


def output_error(hessian: Hessian, change: torch.Tensor) -> float:
    """The squared change of a layer's outputs, sum over features, mean over tokens: Σ_k δ_k H δ_kᵀ / tokens.

    change: Ŵ − W [out_features, channels], any float dtype. That of all features is the sum of that of its parts.

    Computed in float32 where that is provably good enough, in float64 otherwise and for any change that is float64.
    With independent errors of rounding a row's result has a standard deviation of at most √2 K 2^-24 Σ_j δ_j² H_jj,
    where K channels are summed in float32: K of rounding a sum's K steps, |H_ij|² ≤ H_ii H_jj, √2 of counting products
    with other blocks twice. Rows err on their own, so that squares add up over rows. Nearly three times that deviation
    has to be below TOLERANCE of the result.
    """
    total = torch.zeros((), dtype=torch.float64, device=change.device)
    alone = torch.zeros_like(total)
    if change.dtype != torch.float64:
        weights = hessian.matrix.diagonal()
        for rows in change.split(ROWS):
            total += row_errors(hessian.matrix, rows.float()).sum()
            alone += (rows.float().square() @ weights).double().square().sum()
    deviation = 4 * min(BLOCK, change.shape[1]) * ROUNDING * alone.sqrt()
    if change.dtype == torch.float64 or bool(deviation > TOLERANCE * total):
        total = sum((row_errors(hessian.matrix, rows.double()).sum() for rows in change.split(ROWS)), 0 * alone)
    # What is never negative is kept from becoming so by rounding.
    return float(total.clamp(min=0.0)) / hessian.tokens


def row_errors(matrix: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """δ H δᵀ of each row, float64 [rows], for change [rows, channels] and a symmetric matrix [channels, channels].

    Products are in the dtype of `change`, and their sums over up to BLOCK channels; sums of those are in float64. Only
    what the matrix has on and above its diagonal counts. Memory is one block of rows and one of the matrix.
    """
    total = torch.zeros(len(change), dtype=torch.float64, device=change.device)
    parts = blocks(change.shape[1])
    for index, (start, end) in enumerate(parts):
        for first, last in parts[: index + 1]:
            entries = matrix[first:last, start:end].to(change.dtype)
            if first == start:
                entries = entries.triu() + entries.triu(1).t()
            part = change[:, first:last] @ entries
            # What lies below the diagonal blocks is the mirror image of what lies above.
            total.add_(part.mul_(change[:, start:end]).sum(dim=1), alpha=1 if first == start else 2)
    return total


def blocks(channels: int) -> list[tuple[int, int]]:
    """The first channel of each block of BLOCK channels, and that after its last."""
    return [(at, min(at + BLOCK, channels)) for at in range(0, channels, BLOCK)]
