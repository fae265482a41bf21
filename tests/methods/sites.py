"""A site made of plain tensors, for testing methods without a model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from channelwise.methods.site import Candidate, ChannelStatistics, Importance, LayerChoice, input_step
from channelwise.numerics.granularity import ROW
from channelwise.numerics.grids import Grid, IntegerGrid
from channelwise.numerics.inputs import static_codes, static_vectors
from channelwise.numerics.quantizer import fake_quantize, parameters_of
from channelwise.numerics.transform import ChannelTransform


@dataclass(frozen=True)
class TensorSite:
    """Inputs [samples, tokens, channels] and weights [out_features, channels]; the loss is that of their outputs."""

    x: torch.Tensor
    weights: Sequence[torch.Tensor]
    input_grid: IntegerGrid

    @property
    def input_grids(self) -> tuple[Grid, ...]:
        """The one grid."""
        return (self.input_grid,)

    @property
    def weight_grids(self) -> tuple[Grid, ...]:
        """The same grid."""
        return (self.input_grid,)

    @property
    def samples(self) -> torch.Tensor:
        """All tokens."""
        return self.x.flatten(0, 1)

    @property
    def importance(self) -> list[Importance | None]:
        """Nothing known."""
        return [None for _ in self.weights]

    @property
    def statistics(self) -> ChannelStatistics:
        """Exact statistics of x."""
        low, high = torch.aminmax(self.x, dim=1)
        minimum, maximum = low.amin(dim=0), high.amax(dim=0)
        return ChannelStatistics(minimum, maximum, ((low + high) / 2).mean(dim=0), self.x[..., 0].numel())

    def solved(self, solve: Callable[[int], LayerChoice], costs: Sequence[float]) -> tuple[LayerChoice, ...]:
        """Each layer's, here."""
        return tuple(map(solve, range(len(costs))))

    def output(self, transform: ChannelTransform, clip: float = 1.0) -> list[torch.Tensor]:
        """The quantized outputs [tokens, out_features]."""
        grid = self.input_grid
        flat = self.x.flatten(0, 1)
        step, zero_point = input_step(self.statistics, transform, grid, clip)
        quantized = static_codes(flat, *static_vectors(transform, step, zero_point), grid) * step
        outputs = []
        for weight in self.weights:
            folded = transform.fold_weight(weight)
            rounded = fake_quantize(folded, parameters_of(folded, grid, ROW), grid, ROW)
            y = quantized @ rounded.t()
            bias = transform.fold_bias(weight, None)
            outputs.append(y if bias is None else y + bias)
        return outputs

    def loss(self, transform: ChannelTransform, clip: float = 1.0) -> float:
        """Sum over features, mean over tokens, of the squared difference."""
        flat = self.x.flatten(0, 1)
        pairs = zip(self.output(transform, clip), self.weights, strict=True)
        return sum(float((y - flat @ w.t()).square().sum(dim=1).mean()) for y, w in pairs)

    def losses(self, candidates: Sequence[Candidate]) -> list[float]:
        """One after the other."""
        return [self.loss(candidate.transform, candidate.clip) for candidate in candidates]


def outlier_site(seed: int = 0, channels: int = 64, grid: IntegerGrid | None = None, offset: float = 1.0) -> TensorSite:
    """Inputs with a few channels many times the others, and channel offsets `offset` times their spread."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(channels, generator=generator) + 0.5
    spread[:3] = torch.tensor([40.0, 25.0, 15.0])
    centers = offset * spread * (torch.rand(channels, generator=generator) * 4 - 2)
    x = torch.randn(4, 128, channels, generator=generator).clamp(-3, 3) * spread + centers
    weights = [torch.randn(48, channels, generator=generator) for _ in range(3)]
    return TensorSite(x, weights, grid or IntegerGrid(6))
