"""What a method sees of a site, and what it gives back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch

from channelwise.numerics.grids import Grid
from channelwise.numerics.quantizer import Parameters, parameters_from_range
from channelwise.numerics.transform import ChannelTransform
from channelwise.runtime.scheme import InputScheme, WeightScheme

Notes = Mapping[str, float | str]


@dataclass(frozen=True)
class ChannelStatistics:
    """Statistics of a site's input over the calibration set, each float32 [channels].

    minimum, maximum: over all tokens. sample_center: the mean over samples of (max + min)/2 within the sample.
    tokens: how many tokens were seen. mean_absolute: the mean of |X_j| over all tokens, where it was gathered.
    """

    minimum: torch.Tensor
    maximum: torch.Tensor
    sample_center: torch.Tensor
    tokens: int
    mean_absolute: torch.Tensor | None = None

    @property
    def center(self) -> torch.Tensor:
        """(max + min) / 2, the centre of the global range (OS+, eq. 4)."""
        return (self.maximum + self.minimum) / 2

    @property
    def absolute_maximum(self) -> torch.Tensor:
        """max |X_j|."""
        return torch.maximum(self.minimum.abs(), self.maximum.abs())

    def absolute_maximum_around(self, center: torch.Tensor) -> torch.Tensor:
        """max |X_j − center_j|."""
        return torch.maximum(self.maximum - center, center - self.minimum)


@dataclass(frozen=True)
class Importance:
    """How much an error at a layer's outputs matters to the model: of token t and output k, tokens_t · outputs_k.

    float32 [tokens] and [out_features], each with mean 1: the marginals of the diagonal Fisher information.
    """

    tokens: torch.Tensor
    outputs: torch.Tensor


@dataclass(frozen=True)
class InputQuantizer:
    """A layer's input quantizer: its scheme, and what a static one needs.

    step: float32 []. zero_point: float32 [] or None. exponents: integers [channels] or None, the pre-shifted exponent
    bias b_j of LLM-FP4: channel j is quantized times 2^b_j, and its weight column times 2^−b_j.
    """

    scheme: InputScheme
    step: torch.Tensor | None = None
    zero_point: torch.Tensor | None = None
    exponents: torch.Tensor | None = None


@dataclass(frozen=True)
class LayerChoice:
    """The quantizers of one linear layer: its (transformed) weight's scheme and parameters, its input, and notes.

    codes: int16 [out_features, channels] where rounding was more than to nearest, else None.
    """

    weights: WeightScheme
    parameters: Parameters
    inputs: InputQuantizer | None
    notes: Notes = field(default_factory=dict)
    codes: torch.Tensor | None = None

    def to(self, device: torch.device | str) -> "LayerChoice":
        """The same with its tensors on a device."""

        def moved(part: torch.Tensor | None) -> torch.Tensor | None:
            return None if part is None else part.to(device)

        parameters = Parameters(self.parameters.scale.to(device), moved(self.parameters.zero_point))
        inputs = self.inputs
        if inputs is not None:
            step, zero_point, exponents = (moved(part) for part in (inputs.step, inputs.zero_point, inputs.exponents))
            inputs = InputQuantizer(inputs.scheme, step, zero_point, exponents)
        return replace(self, parameters=parameters, inputs=inputs, codes=moved(self.codes))


@dataclass(frozen=True)
class Choice:
    """A decision for one site: the transform, and notes that reports show (such as the chosen t).

    clip: the share of the transformed range that a static input quantizer covers; what is beyond saturates.
    layers: the quantizers of the site's layers, in their order; None: the recipe's, with min-max ranges.
    """

    transform: ChannelTransform
    notes: Notes = field(default_factory=dict)
    clip: float = 1.0
    layers: tuple[LayerChoice, ...] | None = None


@dataclass(frozen=True)
class Candidate:
    """A transform to try. clip: the share of the transformed range that a static input quantizer covers."""

    transform: ChannelTransform
    clip: float = 1.0


class SiteView(Protocol):
    """A site as a method sees it."""

    @property
    def statistics(self) -> ChannelStatistics:
        """The channel statistics of the site's input."""
        ...

    @property
    def weights(self) -> Sequence[torch.Tensor]:
        """The weights of the site's linear layers, float32 [out_features, channels] each."""
        ...

    @property
    def input_grids(self) -> tuple[Grid, ...]:
        """The grids that the site's input may have; none where inputs stay floating point."""
        ...

    @property
    def weight_grids(self) -> tuple[Grid, ...]:
        """The grids that the weights may have."""
        ...

    @property
    def samples(self) -> torch.Tensor:
        """Some tokens of the site's input, drawn at random, float32 [tokens, channels]."""
        ...

    @property
    def importance(self) -> Sequence[Importance | None]:
        """For each layer the importance of its outputs at `samples`, or None for 1 everywhere."""
        ...

    def solved(self, solve: Callable[[int], LayerChoice], costs: Sequence[float]) -> tuple[LayerChoice, ...]:
        """What `solve` gives for each of the site's layers, by number; processes that share the work divide them.

        costs: of each layer, in any unit.
        """
        ...

    def loss(self, transform: ChannelTransform, clip: float = 1.0) -> float:
        """The change of the site's output under this transform and the recipe's quantizers (OS+, eq. 9).

        clip: the share of the transformed range that a static input quantizer covers.
        Sum over features, mean over tokens, of the squared difference to the unquantized weights on the same input.
        """
        ...

    def losses(self, candidates: Sequence[Candidate]) -> list[float]:
        """The loss of each, bitwise what `loss` gives; asked together, the device is waited for once."""
        ...


class Method(Protocol):
    """A way to choose a site's channel transform; implementations are frozen dataclasses of their parameters."""

    def choose(self, site: SiteView) -> Choice:
        """The transform for this site."""
        ...


def input_step(
    statistics: ChannelStatistics, transform: ChannelTransform, grid: Grid, clip: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Step and zero point (float32 []) of a static quantizer that covers `clip` times the transformed range."""
    low = transform.apply(statistics.minimum).amin() * clip
    high = transform.apply(statistics.maximum).amax() * clip
    parameters = parameters_from_range(low, high, grid)
    return parameters.scale, parameters.zero_point


def positive(scale: torch.Tensor) -> torch.Tensor:
    """The scale with 1 in place of what is not a positive normal number: channels that were never anything but 0."""
    usable = scale > torch.finfo(torch.float32).tiny
    return torch.where(usable, scale, torch.ones_like(scale))
