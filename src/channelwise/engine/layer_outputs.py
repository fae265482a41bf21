"""What a site's layers give: as they are, and with a transform and quantizers that are tried."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear as apply_linear

from channelwise.engine.plan import InputPlan, WeightPlan
from channelwise.methods.site import Candidate, ChannelStatistics, input_step
from channelwise.model.linears import bias_vector, weight_matrix
from channelwise.numerics.quantizer import fake_quantize, parameters_of
from channelwise.runtime.encoding import encoder_of
from channelwise.runtime.sharing import SharesCodes
from channelwise.runtime.trial import trial_execution
from channelwise.runtime.widening import WIDENED


@dataclass(frozen=True)
class LayerOutputs:
    """The outputs of some linear layers on one input.

    Some rows of a weight at a time: in float32 a large one is twice what it is in the model. statistics: of the input.
    own_dtype: whether outputs are in the weight's dtype, in which they go on, instead of float32.
    """

    modules: tuple[nn.Module, ...]
    statistics: ChannelStatistics
    weights: WeightPlan
    inputs: InputPlan | None
    own_dtype: bool

    @cached_property
    def biases(self) -> tuple[torch.Tensor | None, ...]:
        """Of each layer, float32 [out_features]."""
        found = [bias_vector(m) for m in self.modules]
        return tuple(None if b is None else b.detach().float() for b in found)

    def plain(self, x: torch.Tensor) -> list[torch.Tensor]:
        """What each layer gives for x [..., channels] as it is: [..., out_features] each."""
        wide = x.float()
        return [_joined(self._plain_rows(layer, wide)) for layer in range(len(self.modules))]

    def tried(self, candidate: Candidate, inputs: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
        """By input what each layer gives with the candidate's transform and the recipe's quantizers.

        inputs: [..., channels] each, any float dtype. A layer's output: [..., out_features].
        """
        trial = _Trial(self, candidate, inputs)
        by_layer = [trial.outputs(layer) for layer in range(len(self.modules))]
        return [list(outputs) for outputs in zip(*by_layer, strict=True)]

    def dtype(self, layer: int) -> torch.dtype:
        """That of the layer's outputs."""
        return weight_matrix(self.modules[layer]).dtype if self.own_dtype else torch.float32

    def parts(self, layer: int, *, quantized: bool) -> list[slice]:
        """Rows of a weight that are widened at a time; all where they share scales."""
        matrix = weight_matrix(self.modules[layer])
        if quantized and self.weights.granularity.kind not in ("row", "row_group"):
            return [slice(0, len(matrix))]
        return few_rows(matrix)

    def rows(self, layer: int, rows: slice) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Some rows of a weight and its bias, float32."""
        bias = self.biases[layer]
        return weight_matrix(self.modules[layer]).detach()[rows].float(), None if bias is None else bias[rows]

    def _plain_rows(self, layer: int, x: torch.Tensor) -> list[torch.Tensor]:
        dtype, parts = self.dtype(layer), self.parts(layer, quantized=False)
        return [apply_linear(x, *self.rows(layer, rows)).to(dtype) for rows in parts]


class _Trial:
    """One candidate at a site: what its inputs become is found once for all layers."""

    def __init__(self, layers: LayerOutputs, candidate: Candidate, inputs: Sequence[torch.Tensor]) -> None:
        self.layers, self.transform, self.inputs = layers, candidate.transform, inputs
        self.scheme = None if layers.inputs is None else layers.inputs.scheme
        self.step: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)
        if self.scheme is not None and self.scheme.kind == "static":
            self.step = input_step(layers.statistics, self.transform, self.scheme.grid, candidate.clip)
        self._coded: list[Any] | None = None

    def outputs(self, layer: int) -> list[torch.Tensor]:
        """What a layer gives for each input."""
        dtype = self.layers.dtype(layer)
        found: list[list[torch.Tensor]] = [[] for _ in self.inputs]
        for rows in self.layers.parts(layer, quantized=True):
            for parts, output in zip(found, self._rows(*self.layers.rows(layer, rows)), strict=True):
                parts.append(output.to(dtype))
        return [_joined(parts) for parts in found]

    def _rows(self, weight: torch.Tensor, bias: torch.Tensor | None) -> list[torch.Tensor]:
        bias, folded = self.transform.fold_bias(weight, bias), self.transform.fold_weight(weight)
        weights = self.layers.weights.scheme
        execution = None
        if self.scheme is not None:
            execution = trial_execution(folded, bias, weights, self.transform, self.scheme, *self.step)
        if isinstance(execution, SharesCodes):
            found = [execution.product(codes, torch.float32) for codes in self._bytes(execution)]
        elif execution is not None:
            found = [execution(x.reshape(-1, x.shape[-1]).float()) for x in self.inputs]
        else:
            rounded = quantized_weight(folded, self.layers.weights)
            return [apply_linear(values, rounded, bias) for values in self._values]
        return [y.view(*x.shape[:-1], len(weight)) for x, y in zip(self.inputs, found, strict=True)]

    @cached_property
    def _values(self) -> list[torch.Tensor]:
        """The decoded codes of each input, still transformed, float32."""
        encoder = encoder_of(self.scheme, self.transform, *self.step, None)
        if encoder is None:
            return [self.transform.apply(x.float()) for x in self.inputs]
        return [encoder(x).values() for x in self.inputs]

    def _bytes(self, execution: SharesCodes) -> list[Any]:
        """The codes of each input, as every execution of this trial takes them."""
        if self._coded is None:
            self._coded = [execution.bytes_of(x.reshape(-1, x.shape[-1])) for x in self.inputs]
        return self._coded


def quantized_weight(folded: torch.Tensor, plan: WeightPlan) -> torch.Tensor:
    """The values of the codes of a transformed weight, float32 [out_features, channels], rounded to nearest."""
    grid, granularity = plan.scheme.grid, plan.scheme.granularity
    return fake_quantize(folded, parameters_of(folded, grid, granularity), grid, granularity)


def few_rows(matrix: torch.Tensor) -> list[slice]:
    """Rows that are widened at a time."""
    count, columns = matrix.shape
    step = max(1, WIDENED // columns)
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x · weightᵀ + bias, float32 [..., out_features], a few rows of the weight at a time.

    Libraries copy a whole one into an order of their own.
    """
    parts = few_rows(weight)
    biases = [None if bias is None else bias[rows] for rows in parts]
    return _joined([apply_linear(x, weight[rows], own) for rows, own in zip(parts, biases, strict=True)])


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    """Outputs of some rows of a weight after those of others."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
