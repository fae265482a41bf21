"""Products of integer codes with int8 weights, exact in int32, with one factor per output channel on the way out.

Which one is used depends on the device and on what is exact there (`best_product`); all give the same numbers up to
the rounding of float32.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch

MAX_COLUMNS = 2**16
"""With at most so many columns, 255 · 127 · columns stays below 2^31: int32 sums cannot overflow."""

UNSIGNED_OFFSET = 128
"""What makes a signed code unsigned: oneDNN has no fast kernel for signed activations."""

EXACT_COLUMNS = 512
"""255 · 128 · 512 is below 2^24: sums over so many columns are exact in float32."""

SMALLEST_CUDA_ROWS = 32
"""torch._int_mm wants more than 16 rows on CUDA."""


class Product(Protocol):
    """A weight prepared for products with codes.

    Called with codes (float32 whole numbers [rows, in_features]), a whole zero point, a factor float32 [out_features]
    and a bias float32 [out_features] or None, it gives bias_o + factor_o · Σ_k (code_k − zero_point) · weight_ok as
    float32 [rows, out_features].
    """

    def __call__(
        self, codes: torch.Tensor, zero_point: int, factor: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """See the class."""
        ...

    def sums(self, codes: torch.Tensor, zero_point: int) -> torch.Tensor:
        """Σ_k (code_k − zero_point) · weight_ok, int64 [rows, out_features]: what the factor is multiplied with."""
        ...


@dataclass(frozen=True)
class OneDnnProduct:
    """oneDNN's u8 × s8 product with its epilogue inside: int32 sums, zero point taken off in int32, one conversion."""

    packed: torch.Tensor
    weight_zero_points: torch.Tensor
    signed: bool

    @classmethod
    def prepare(cls, weight: torch.Tensor, signed: bool) -> "OneDnnProduct":
        """weight: int8 [out_features, in_features] on the CPU; signed: whether codes can be negative."""
        packed = torch.ops.onednn.qlinear_prepack(weight.contiguous(), None)
        return cls(packed, torch.zeros(weight.shape[0], dtype=torch.int32), signed)

    def __call__(
        self, codes: torch.Tensor, zero_point: int, factor: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """See `Product`."""
        offset = UNSIGNED_OFFSET if self.signed else 0
        unsigned = _shifted_bytes(codes) if self.signed else codes.to(torch.int16).to(torch.uint8)
        # fmt: off
        product: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            unsigned, 1.0, zero_point + offset, self.packed, factor, self.weight_zero_points, bias,
            1.0, 0, torch.float32, "none", [], "",
        )
        # fmt: on
        return product

    def sums(self, codes: torch.Tensor, zero_point: int) -> torch.Tensor:
        """See `Product`: from the same kernel, whose float32 holds the sums over some columns at a time exactly."""
        rows, columns, outputs = codes.shape[0], codes.shape[1], self.weight_zero_points.shape[0]
        factor = torch.ones(outputs)
        sums = torch.zeros(rows, outputs, dtype=torch.int64)
        for start in range(0, columns, EXACT_COLUMNS):
            part = torch.full_like(codes, zero_point)
            part[:, start : start + EXACT_COLUMNS] = codes[:, start : start + EXACT_COLUMNS]
            sums += self(part, zero_point, factor, None).long()
        return sums


@dataclass(frozen=True)
class Int8Product:
    """torch._int_mm on signed codes: s8 × s8 to int32."""

    weight: torch.Tensor
    column_sums: torch.Tensor
    signed: bool

    @classmethod
    def prepare(cls, weight: torch.Tensor, signed: bool) -> "Int8Product":
        """weight: int8 [out_features, in_features]; signed: whether codes can be negative.

        Raises ValueError for one input channel: torch._int_mm is wrong there on the CPU (seen in torch 2.13).
        """
        if weight.shape[1] == 1:
            raise ValueError("torch._int_mm needs two input channels or more")
        return cls(weight.contiguous(), weight.sum(dim=1, dtype=torch.int32), signed)

    def __call__(
        self, codes: torch.Tensor, zero_point: int, factor: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """See `Product`."""
        scaled = self._sums(codes, zero_point) * factor
        return scaled if bias is None else scaled.add_(bias)

    def sums(self, codes: torch.Tensor, zero_point: int) -> torch.Tensor:
        """See `Product`."""
        return self._sums(codes, zero_point).long()

    def _sums(self, codes: torch.Tensor, zero_point: int) -> torch.Tensor:
        offset = 0 if self.signed else UNSIGNED_OFFSET
        sums = int8_sums((codes - offset if offset else codes).to(torch.int8), self.weight)
        return sums if offset == zero_point else sums + (offset - zero_point) * self.column_sums


@dataclass(frozen=True)
class Float64Product:
    """The reference: whole numbers in float64, exact for any size there is."""

    weight: torch.Tensor

    @classmethod
    def prepare(cls, weight: torch.Tensor, signed: bool) -> "Float64Product":
        """weight: any integer dtype [out_features, in_features]; signed makes no difference."""
        return cls(weight.double())

    def __call__(
        self, codes: torch.Tensor, zero_point: int, factor: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """See `Product`."""
        scaled = self._sums(codes, zero_point).float() * factor
        return scaled if bias is None else scaled + bias

    def sums(self, codes: torch.Tensor, zero_point: int) -> torch.Tensor:
        """See `Product`."""
        return self._sums(codes, zero_point).long()

    def _sums(self, codes: torch.Tensor, zero_point: int) -> torch.Tensor:
        return (codes.double() - zero_point) @ self.weight.t()


def int8_sums(left: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """left · weightᵀ in int32, of int8 [rows, columns] and [out_features, columns], where `int8_sums_are_exact`."""
    missing = SMALLEST_CUDA_ROWS - left.shape[0] if left.is_cuda else 0
    padded = torch.nn.functional.pad(left, (0, 0, 0, missing)) if missing > 0 else left
    return torch._int_mm(padded, weight.t())[: left.shape[0]]


def int8_sums_are_exact(weight: torch.Tensor) -> bool:
    """Whether `int8_sums` takes a weight of this shape and device, any integer dtype, and is right there."""
    rows, columns = weight.shape
    if rows == 0 or not 1 < columns <= MAX_COLUMNS:
        return False
    if weight.is_cuda:
        # torch._int_mm takes multiples of 8 only.
        return rows % 8 == 0 and columns % 8 == 0
    return weight.device.type == "cpu" and _cpu_int8_is_exact()


def _shifted_bytes(codes: torch.Tensor) -> torch.Tensor:
    """Codes −128 … 127 as uint8 plus 128, a quarter of the time that adding before the conversion takes."""
    return codes.to(torch.int8).view(torch.uint8).bitwise_xor_(UNSIGNED_OFFSET)


Prepare = Callable[[torch.Tensor, bool], Product]


def best_product(weight: torch.Tensor, signed: bool) -> Product:
    """The fastest product that is exact for this weight (int8 [out_features, in_features]) on its device."""
    return _choose(weight)(weight, signed)


def _choose(weight: torch.Tensor) -> Prepare:
    rows, columns = weight.shape
    if rows == 0 or columns == 0 or columns > MAX_COLUMNS:
        return Float64Product.prepare
    if weight.device.type == "cpu" and onednn_is_exact():
        return OneDnnProduct.prepare
    if weight.is_cuda and int8_sums_are_exact(weight):
        return Int8Product.prepare
    return Float64Product.prepare


@cache
def onednn_is_exact() -> bool:
    """Whether torch has oneDNN's product and this processor adds u8 × s8 without saturating (16-bit sums would)."""
    if not (hasattr(torch.ops.onednn, "qlinear_prepack") and hasattr(torch.ops.onednn, "qlinear_pointwise")):
        return False
    with torch.inference_mode(False), torch.no_grad():
        weight = torch.full((32, 128), 127, dtype=torch.int8, device="cpu")
        weight[1::2] = -127
        codes = torch.full((4, 128), 255.0, device="cpu")
        expected = (codes.double() @ weight.double().t()).float()
        try:
            product = OneDnnProduct.prepare(weight, signed=False)
            return torch.equal(product(codes, 0, torch.ones(32, device="cpu"), None), expected)
        except RuntimeError:
            return False


@cache
def _cpu_int8_is_exact() -> bool:
    """Whether this processor adds s8 × s8 without saturating."""
    with torch.inference_mode(False), torch.no_grad():
        weight = torch.full((32, 128), 127, dtype=torch.int8, device="cpu")
        weight[1::2] = -128
        left = torch.full((4, 128), -128, dtype=torch.int8, device="cpu")
        left[1::2] = 127
        try:
            return torch.equal(int8_sums(left, weight).double(), left.double() @ weight.double().t())
        except RuntimeError:
            return False
