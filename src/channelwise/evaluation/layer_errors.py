"""What quantization costs each linear layer: the relative error of its output on the original model's own inputs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear as apply_linear

from channelwise.engine.hooks import observed_inputs
from channelwise.model.batches import Batch
from channelwise.model.linears import bias_vector, is_linear, weight_matrix
from channelwise.runtime.linear import QuantizedLinear
from channelwise.runtime.widening import in_wide_products

SAMPLES, TOKENS = 8, 2048
"""How many samples and about how many tokens an error is measured on."""

ROWS = 256
"""Tokens that are looked at together: the outputs of a head over a large vocabulary take gigabytes otherwise."""

Forms = Mapping[str, Mapping[str, QuantizedLinear]]
"""Quantized forms of layers: by a label, then by the layer's name."""


@dataclass
class _Sums:
    """Of one layer, in float64: squared errors by label; tokens; sums and sums of squares of the outputs [out].

    Outputs count from those of the first token, so that the sums of squares are not those of a common offset.
    """

    errors: dict[str, float] = field(default_factory=dict)
    tokens: int = 0
    first: torch.Tensor | None = None
    total: torch.Tensor | float = 0.0
    squares: torch.Tensor | float = 0.0

    def add(self, y: torch.Tensor, label_outputs: Iterator[tuple[str, torch.Tensor]]) -> None:
        """Some tokens' outputs [tokens, out], of the original and by label."""
        exact = y.double()
        for label, output in label_outputs:
            self.errors[label] = self.errors.get(label, 0.0) + float((output.double() - exact).square().sum())
        if self.first is None:
            self.first = exact[0].clone()
        exact -= self.first
        self.tokens += len(exact)
        self.total = self.total + exact.sum(dim=0)
        self.squares = self.squares + exact.square().sum(dim=0)

    def relative(self, label: str) -> float | None:
        """The squared error over the outputs' squared distance to their means; None where there is neither."""
        if label not in self.errors or not isinstance(self.squares, torch.Tensor):
            return None
        assert isinstance(self.total, torch.Tensor)
        spread = float((self.squares - self.total.square() / self.tokens).clamp(min=0.0).sum())
        return self.errors[label] / spread if spread > 0.0 else None


@in_wide_products
@torch.no_grad()
def relative_errors(root: nn.Module, runs: Sequence[Callable[[], Any]], forms: Forms) -> dict[str, dict[str, float]]:
    """By layer and label: ‖Ŷ − Y‖² / ‖Y − mean‖² over the tokens of all runs, the mean that of each output channel.

    runs: each runs the unquantized root once. Y is a layer's own output, Ŷ that of its quantized form on the same
    input: 0 is exact, 1 as bad as a constant. Both are computed in float32 and summed in float64; no activations are
    kept. What has no error is left out: a layer that root does not have as a linear layer, that no token reached, or
    whose output is the same for all tokens.
    """
    names = sorted({name for layers in forms.values() for name in layers if _is_linear_of(root, name)})
    sums = {name: _Sums() for name in names}

    def observe(name: str, x: torch.Tensor) -> None:
        module = root.get_submodule(name)
        weight, bias = weight_matrix(module).float(), bias_vector(module)
        bias = None if bias is None else bias.float()
        layers = {label: of_label[name] for label, of_label in forms.items() if name in of_label}
        for rows in x.detach().reshape(-1, x.shape[-1]).split(ROWS):
            if len(rows):
                part = rows.float()
                outputs = ((label, layer(part)) for label, layer in layers.items())
                sums[name].add(apply_linear(part, weight, bias), outputs)

    with observed_inputs(root, names, observe):
        for run in runs:
            run()
    return {
        name: {label: error for label in forms if (error := of_layer.relative(label)) is not None}
        for name, of_layer in sums.items()
    }


def layer_errors(original: nn.Module, quantized: nn.Module, batches: Sequence[Batch]) -> dict[str, float | None]:
    """By full name of every quantized layer its relative error, as `relative_errors`; None where it has none.

    original: the same model in floating point, its experts taken apart too. batches: its inputs, on its device.
    """
    layers = {name: module for name, module in quantized.named_modules() if isinstance(module, QuantizedLinear)}
    runs = [lambda batch=batch: original(**batch) for batch in batches]
    found = relative_errors(original, runs, {"": layers})
    return {name: found.get(name, {}).get("") for name in layers}


def few_samples(batches: Sequence[Batch], samples: int = SAMPLES, tokens: int = TOKENS) -> list[Batch]:
    """The first samples of the batches, each a batch of its own, at most so many and about so many tokens.

    The longest come first, whatever the order of the batches; an image counts as one token.
    """
    rows = [
        {name: value[row : row + 1] for name, value in batch.items()}
        for batch in batches
        for row in range(len(next(iter(batch.values()))))
    ]
    rows.sort(key=_length, reverse=True)
    chosen: list[Batch] = []
    for row in rows[:samples]:
        if chosen and sum(map(_length, chosen)) + _length(row) > tokens:
            break
        chosen.append(row)
    return chosen


def _length(batch: Batch) -> int:
    """Tokens of a batch of one sample; 1 for an image."""
    return batch["input_ids"].numel() if "input_ids" in batch else 1


def _is_linear_of(root: nn.Module, name: str) -> bool:
    try:
        return is_linear(root.get_submodule(name))
    except AttributeError:
        return False
