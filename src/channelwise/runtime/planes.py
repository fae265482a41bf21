"""Products of whole numbers beyond int8: both sides in digits of base 256, every pair of digits an exact product.

Of a weight's higher digits only the columns that have any are kept: with LLM-FP4's exponents, or on a grid as wide as
E3M0, these are few.
"""

from dataclasses import dataclass

import torch

from channelwise.runtime.products import (
    UNSIGNED_OFFSET,
    Float64Product,
    Product,
    int8_sums,
    int8_sums_are_exact,
)
from channelwise.runtime.whole import MAX_PLANES, planes_for

COLUMN_MULTIPLE = 8
"""torch._int_mm wants multiples of 8 on CUDA, and more than one input channel on the CPU."""

LARGEST_FLOAT64_SUM = 2**53


@dataclass(frozen=True)
class WeightPlane:
    """One digit of a weight, int8 [out_features, columns]: of these columns of the input, None for all of them."""

    digits: torch.Tensor
    columns: torch.Tensor | None
    place: int


@dataclass(frozen=True)
class PlaneProduct:
    """Σ_pq 256^(p+q) · digit_q · plane_pᵀ: int32 products, added up in int32 if that is wide enough, else in float64.

    column_sums: Σ_k weight_ok, float64 [out_features]; signed: whether codes can be negative, those that cannot are
    moved by 128.
    """

    planes: tuple[WeightPlane, ...]
    code_planes: int
    column_sums: torch.Tensor
    signed: bool
    sum_type: torch.dtype

    @classmethod
    def prepare(cls, weight: torch.Tensor, largest_code: int, signed: bool) -> "PlaneProduct":
        """weight: int8 or int32 [out_features, in_features]; codes of ±largest_code, or of 0 … 255 if not signed."""
        digits = _digits(weight.int(), planes_for(float(weight.int().abs().max())))
        code_planes = planes_for(largest_code) if signed else 1
        magnitude = sum(256**place * digit.double().abs() for place, digit in enumerate(digits))
        bound = _digit_magnitude(largest_code if signed else UNSIGNED_OFFSET, code_planes) * float(
            torch.as_tensor(magnitude).sum(dim=1).max()
        )
        planes = tuple(_plane(digit, place) for place, digit in enumerate(digits) if bool(digit.any()))
        sum_type = torch.int32 if bound < 2**31 else torch.float64
        return cls(planes, code_planes, weight.sum(dim=1, dtype=torch.int64).double(), signed, sum_type)

    def __call__(
        self, codes: torch.Tensor, zero_point: int, factor: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """See `Product`."""
        scaled = self._sums(codes, zero_point).float().mul_(factor)
        return scaled if bias is None else scaled.add_(bias)

    def sums(self, codes: torch.Tensor, zero_point: int) -> torch.Tensor:
        """See `Product`."""
        return self._sums(codes, zero_point).long()

    def _sums(self, codes: torch.Tensor, zero_point: int) -> torch.Tensor:
        offset = 0 if self.signed else UNSIGNED_OFFSET
        whole = (codes - offset if offset else codes).int()
        total: torch.Tensor | None = None
        for place, digit in enumerate(_digits(whole, self.code_planes)):
            for plane in self.planes:
                left = digit if plane.columns is None else digit.index_select(1, plane.columns)
                part, weight = int8_sums(left, plane.digits), 256 ** (place + plane.place)
                # New memory costs more than the sums themselves, so the first product is the memory of all.
                if total is not None:
                    total.add_(part, alpha=weight)
                else:
                    total = part.to(self.sum_type) if weight == 1 else part.to(self.sum_type).mul_(weight)
        if total is None:
            total = torch.zeros(codes.shape[0], self.column_sums.shape[0], dtype=self.sum_type, device=codes.device)
        return total if offset == zero_point else total + (offset - zero_point) * self.column_sums


def wide_product(weight: torch.Tensor, largest_code: int, signed: bool) -> Product | None:
    """The product of a weight, int8 or int32 [out_features, in_features], with codes beyond int8 on either side.

    largest_code: of signed codes; others are 0 … 255. None where the codes have too many digits, or sums might be
    beyond what float64 holds exactly.
    """
    bound = largest_code * float(weight.double().abs().sum(dim=1).max()) if weight.numel() else 0.0
    if planes_for(largest_code) > MAX_PLANES or bound >= LARGEST_FLOAT64_SUM:
        return None
    if int8_sums_are_exact(weight):
        return PlaneProduct.prepare(weight, largest_code, signed)
    return Float64Product.prepare(weight, signed)


def _digits(whole: torch.Tensor, count: int) -> list[torch.Tensor]:
    """Digits −128 … 127 of base 256, lowest first: int32 to int8 of the same shape."""
    digits = []
    for _ in range(count):
        # The conversion keeps the lowest byte, which is the digit.
        digits.append(whole.to(torch.int8))
        whole = (whole + 128) >> 8
    return digits


def _digit_magnitude(largest: int, count: int) -> int:
    """A bound of Σ_p 256^p · |digit_p| for numbers of ±largest in `count` digits."""
    return largest + 2 * 128 * (256 ** (count - 1) - 1) // 255


def _plane(digits: torch.Tensor, place: int) -> WeightPlane:
    if place == 0:
        return WeightPlane(digits.contiguous(), None, place)
    columns = digits.any(dim=0).nonzero().squeeze(1)
    missing = -columns.numel() % COLUMN_MULTIPLE
    kept = torch.nn.functional.pad(digits[:, columns], (0, missing))
    return WeightPlane(kept.contiguous(), torch.nn.functional.pad(columns, (0, missing)), place)
