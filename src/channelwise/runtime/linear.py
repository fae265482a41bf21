"""QuantizedLinear: a linear layer kept as packed codes and, where inputs are quantized, computed with integers."""

import math
from collections.abc import Callable
from operator import is_
from typing import Any

import torch
from torch import nn

from channelwise.numerics.quantizer import Parameters, decode
from channelwise.numerics.transform import ChannelTransform
from channelwise.runtime.encoding import encoder_of
from channelwise.runtime.execution import Execution, LinearParts, PackedExecution
from channelwise.runtime.layout import (
    buffer_layout,
    checked_exponents,
    fitted,
    weight_layout,
    weight_parameters,
    weight_parts,
)
from channelwise.runtime.packing import pack, unpack
from channelwise.runtime.preparing import prepare
from channelwise.runtime.scheme import LinearScheme
from channelwise.runtime.sharing import SharedInput, SharesCodes


class QuantizedLinear(nn.Module):
    """y = X̃ · Ŵᵀ + bias, with X̃ = quantized((x − shift) / scale) and Ŵ decoded from packed codes.

    With exponents b_j, X̃_j = 2^−b_j · quantized(2^b_j · (x_j − shift_j) / scale_j); in the product the power moves into
    column j of the weight, exactly (LLM-FP4's pre-shifted exponent bias).

    Buffers, under these names in a checkpoint; those that the scheme does not ask for are None:
    weight_packed uint8 [out_features, bytes]; weight_scale of the granularity's parameter shape, float32, or float16
    for groups; weight_zero_point uint8, as many numbers, packed like the codes; bias float32 [out_features], the
    channel transform's shift already folded into it; input_shift, input_scale float32 [in_features]; for static inputs
    input_step (a floating-point grid's scale) and input_zero_point float32 []; input_exponent uint8 [in_features].
    The buffers keep these dtypes whatever dtype the model is converted to.
    """

    weight_packed: torch.Tensor
    weight_scale: torch.Tensor
    weight_zero_point: torch.Tensor | None
    bias: torch.Tensor | None
    input_shift: torch.Tensor | None
    input_scale: torch.Tensor | None
    input_step: torch.Tensor | None
    input_zero_point: torch.Tensor | None
    input_exponent: torch.Tensor | None

    def __init__(self, scheme: LinearScheme, device: torch.device | str | None = None) -> None:
        """Zeroed buffers of the scheme's shapes on `device`, which may be "meta"."""
        super().__init__()
        self.scheme = scheme
        self._prepared: tuple[tuple[torch.Tensor | None, ...], Execution] | None = None
        self.shared_input: SharedInput | None = None
        for name, layout in buffer_layout(scheme).items():
            empty = None if layout is None else torch.zeros(layout[0], dtype=layout[1], device=device)
            self.register_buffer(name, empty)

    @classmethod
    def from_parts(
        cls,
        scheme: LinearScheme,
        codes: torch.Tensor,
        weight: Parameters,
        bias: torch.Tensor | None = None,
        transform: ChannelTransform | None = None,
        input_step: torch.Tensor | None = None,
        input_zero_point: torch.Tensor | None = None,
        input_exponent: torch.Tensor | None = None,
    ) -> "QuantizedLinear":
        """The layer of given codes and parameters, on the device of `codes`.

        codes: int16 [out_features, in_features] of the transformed weight W·diag(scale), as `numerics.encode` gives
        them. bias: [out_features], final, i.e. `transform.fold_bias(...)`. input_step, input_zero_point: [] or one
        entry, for static inputs. input_exponent: whole numbers [in_features], 0 … 255, below 2^e for an input grid of e
        exponent bits. Raises ValueError if a part is missing, superfluous, of the wrong shape or out of range.
        """
        transform = transform or ChannelTransform()
        parts: dict[str, torch.Tensor | None] = {
            **weight_parts(codes, weight, scheme.weights),
            "bias": bias,
            "input_shift": transform.shift,
            "input_scale": transform.scale,
            "input_step": input_step,
            "input_zero_point": input_zero_point,
            "input_exponent": checked_exponents(input_exponent, scheme),
        }
        layer = cls(scheme, device="meta")
        for name, layout in buffer_layout(scheme).items():
            setattr(layer, name, fitted(name, parts[name], layout, codes.device))
        return layer

    @property
    def in_features(self) -> int:
        """The number of input channels."""
        return self.scheme.in_features

    @property
    def out_features(self) -> int:
        """The number of output channels."""
        return self.scheme.out_features

    @property
    def weight(self) -> torch.Tensor:
        """The shape of the weight without its values, float32 on the meta device.

        transformers' models ask their linear layers for it (T5 its dtype, GPT-2 to initialise what is not loaded);
        computing with it fails instead of going wrong.
        """
        return torch.empty(self.out_features, self.in_features, dtype=torch.float32, device="meta")

    @property
    def transform(self) -> ChannelTransform:
        """The channel transform that is applied to the input."""
        return ChannelTransform(self.input_shift, self.input_scale)

    @property
    def weight_parameters(self) -> Parameters:
        """What turns the weight's codes into values."""
        return weight_parameters(self.weight_scale, self.weight_zero_point, self.scheme.weights)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [..., in_features], any float dtype. Returns [..., out_features] in the dtype of x; without gradients."""
        if not torch.is_grad_enabled():
            return self._forward(x)
        with torch.no_grad():
            return self._forward(x)

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, self.in_features)
        if torch.compiler.is_compiling():
            # Compiled code takes what is prepared as it finds it, and leaves preparing to Python.
            if self._prepared is None:
                torch.compiler.disable(self._execution)()
            assert self._prepared is not None
            result = self._prepared[1](flat)
        else:
            execution = self._execution()
            if self.shared_input is not None and isinstance(execution, SharesCodes) and not x.is_inference():
                codes = self.shared_input.bytes_of(x, self, lambda: execution.bytes_of(flat))
                result = execution.product(codes, x.dtype)
            else:
                result = execution(flat)
        if result.dtype != x.dtype:
            result = result.to(x.dtype)
        return result if x.dim() == 2 else result.view(*x.shape[:-1], self.out_features)

    @torch.no_grad()
    def fake_forward(self, x: torch.Tensor) -> torch.Tensor:
        """The definition of `forward`: decoded codes of x times the decoded weight, in float64. Same shapes."""
        y = self._decoded_input(x) @ self.dequantized_weight().double().t()
        return y if self.bias is None else y + self.bias.double()

    @torch.no_grad()
    def integer_sums(self, x: torch.Tensor) -> torch.Tensor | None:
        """Σ_j X_j · W_kj of the whole numbers that `forward` multiplies, exact, int64 [..., out_features].

        Up to the bias, `forward` gives these sums, rounded to float32, times one factor per output channel (and token).
        None where the layer is computed in floating point.
        """
        sums = self._execution().sums(x.reshape(-1, self.in_features))
        return None if sums is None else sums.reshape(*x.shape[:-1], self.out_features)

    def codes(self) -> torch.Tensor:
        """The weight's codes, int16 [out_features, in_features]."""
        grid = self.scheme.weights.grid
        return unpack(self._rows(), grid.bits, self.in_features).to(torch.int16) + grid.lowest

    def dequantized_weight(self) -> torch.Tensor:
        """The values of the codes, float32 [out_features, in_features]: the weight of the transformed input."""
        weights = self.scheme.weights
        return decode(self.codes(), self.weight_parameters, weights.grid, weights.granularity)

    def weight_bytes(self) -> int:
        """Bytes of the stored weight: codes, scales and zero points."""
        layouts = weight_layout((self.out_features, self.in_features), self.scheme.weights).values()
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in filter(None, layouts))

    def bits_per_weight(self) -> float:
        """Stored bits per entry of the weight, scales and zero points included."""
        return 8.0 * self.weight_bytes() / (self.in_features * self.out_features)

    def keep_packed(self) -> None:
        """Gives up the checkpoint's rows of codes for what the kernels read: memory then holds the weight once.

        Nothing happens where there are no kernels for the layer. Codes, state dicts and copies make the rows again.
        """
        if self.weight_packed.is_meta or self._is_in_panels:
            return
        execution = self._execution()
        if isinstance(execution, PackedExecution):
            self.weight_packed = self.weight_packed.new_empty(self.out_features, 0)
            self._prepared = (tuple(self._buffers.values()), execution)

    def keep_rows(self) -> None:
        """Undoes `keep_packed`, and forgets what `forward` prepared; the next one prepares it again."""
        self.weight_packed, self._prepared, self.shared_input = self._rows(), None, None

    def extra_repr(self) -> str:
        """Sizes and schemes, for print(model)."""
        weights, inputs = self.scheme.weights, self.scheme.inputs
        text = f"{self.in_features}, {self.out_features}, weights={weights.grid} per {weights.granularity.kind}"
        return text if inputs is None else f"{text}, inputs={inputs.grid} {inputs.kind}"

    def _decoded_input(self, x: torch.Tensor) -> torch.Tensor:
        steps = (self.input_step, self.input_zero_point, self.input_exponent)
        encoder = encoder_of(self.scheme.inputs, self.transform, *steps)
        if encoder is None:
            return self.transform.apply(x.float()).double()
        return encoder(x).values(torch.float64)

    def _execution(self) -> Execution:
        prepared = self._prepared
        if prepared is None or not all(map(is_, self._buffers.values(), prepared[0])):
            if prepared is not None:
                self.shared_input = None
            self._prepared = prepared = (tuple(self._buffers.values()), prepare(self._parts()))
        return prepared[1]

    def _parts(self) -> LinearParts:
        return LinearParts(
            self.scheme,
            self._rows(),
            self.weight_parameters,
            self.bias,
            self.transform,
            self.input_step,
            self.input_zero_point,
            self.input_exponent,
        )

    @property
    def _is_in_panels(self) -> bool:
        """Whether `keep_packed` gave up the rows."""
        return self.weight_packed.shape[1] == 0 and self.in_features > 0

    def _rows(self) -> torch.Tensor:
        """What weight_packed holds in a checkpoint."""
        if not self._is_in_panels or self._prepared is None:
            return self.weight_packed
        execution = self._prepared[1]
        assert isinstance(execution, PackedExecution)
        return pack(execution.stored_codes(), self.scheme.weights.grid.bits)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "QuantizedLinear":
        moves = self._is_in_panels and fn(self.weight_packed).device != self.weight_packed.device
        if moves:
            self.keep_rows()

        def kept(tensor: torch.Tensor) -> torch.Tensor:
            result = fn(tensor)
            return result if result.dtype == tensor.dtype else tensor.to(result.device)

        super()._apply(kept, recurse)
        if moves:
            self.keep_packed()
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight_packed"] = self._rows()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.keep_rows()
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        # Prepacked weights can neither be copied nor pickled.
        buffers = {**self._buffers, "weight_packed": self._rows()}
        return {**self.__dict__, "_prepared": None, "shared_input": None, "_buffers": buffers}
