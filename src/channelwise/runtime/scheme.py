"""How one linear layer or embedding is stored and computed; plain data that a checkpoint can write as JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from channelwise.numerics.granularity import Granularity
from channelwise.numerics.grids import FloatGrid, Grid, IntegerGrid

FLOAT_DTYPES = ("float64", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class WeightScheme:
    """The weight's grid and granularity (of the matrix [out_features, in_features])."""

    grid: Grid
    granularity: Granularity


@dataclass(frozen=True)
class InputScheme:
    """The input's grid, after the channel transform: `static` with one step, or per `token`, found at run time."""

    grid: Grid
    kind: Literal["static", "token"]


@dataclass(frozen=True)
class LinearScheme:
    """One linear layer: sizes, weight scheme, input scheme (None: inputs stay in floating point), which tensors it has.

    shift and scale say whether the layer applies a channel transform to its input; exponents, whether every input
    channel has a power of two of its own (LLM-FP4's pre-shifted exponent bias).
    Raises ValueError for exponents without a static input on a symmetric or floating-point grid.
    """

    in_features: int
    out_features: int
    weights: WeightScheme
    inputs: InputScheme | None = None
    bias: bool = False
    shift: bool = False
    scale: bool = False
    exponents: bool = False

    def __post_init__(self) -> None:
        if self.exponents and (self.inputs is None or self.inputs.kind != "static" or is_asymmetric(self.inputs.grid)):
            raise ValueError("exponents per input channel need a static input on a symmetric grid")


@dataclass(frozen=True)
class EmbeddingScheme:
    """One table [rows, columns] and the name of the dtype that its rows come out in, "bfloat16" say.

    Raises ValueError for a granularity whose scales are not a row's own, and for a dtype that is not floating point.
    """

    rows: int
    columns: int
    weights: WeightScheme
    dtype: str

    def __post_init__(self) -> None:
        if self.weights.granularity.kind not in ("row", "row_group"):
            raise ValueError(f"an embedding has scales per row, not per {self.weights.granularity.kind}")
        if self.dtype not in FLOAT_DTYPES:
            raise ValueError(f"{self.dtype!r} is none of {', '.join(FLOAT_DTYPES)}")


def scheme_to_dict(scheme: LinearScheme) -> dict[str, Any]:
    """The scheme as JSON-able data; `scheme_from_dict` is its inverse."""
    data = asdict(scheme)
    data["weights"] = _weights_to_dict(scheme.weights)
    if scheme.inputs is not None:
        data["inputs"]["grid"] = grid_to_dict(scheme.inputs.grid)
    return data


def scheme_from_dict(data: dict[str, Any]) -> LinearScheme:
    """The scheme that `scheme_to_dict` wrote. Raises KeyError, TypeError or ValueError on anything else."""
    inputs = data["inputs"]
    return LinearScheme(
        in_features=data["in_features"],
        out_features=data["out_features"],
        weights=_weights_from_dict(data["weights"]),
        inputs=None if inputs is None else InputScheme(grid_from_dict(inputs["grid"]), inputs["kind"]),
        bias=data["bias"],
        shift=data["shift"],
        scale=data["scale"],
        exponents=data.get("exponents", False),
    )


def embedding_to_dict(scheme: EmbeddingScheme) -> dict[str, Any]:
    """The scheme as JSON-able data; `embedding_from_dict` is its inverse."""
    return {**asdict(scheme), "weights": _weights_to_dict(scheme.weights)}


def embedding_from_dict(data: dict[str, Any]) -> EmbeddingScheme:
    """The scheme that `embedding_to_dict` wrote. Raises KeyError, TypeError or ValueError on anything else."""
    return EmbeddingScheme(data["rows"], data["columns"], _weights_from_dict(data["weights"]), data["dtype"])


def is_asymmetric(grid: Grid) -> bool:
    """Whether the grid has a zero point."""
    return isinstance(grid, IntegerGrid) and not grid.symmetric


def grid_to_dict(grid: Grid) -> dict[str, Any]:
    """{"integer": {...}} or {"float": {...}}."""
    return {"integer" if isinstance(grid, IntegerGrid) else "float": asdict(grid)}


def grid_from_dict(data: dict[str, Any]) -> Grid:
    """The inverse of `grid_to_dict`. Raises ValueError for an unknown kind."""
    if set(data) == {"integer"}:
        return IntegerGrid(**data["integer"])
    if set(data) == {"float"}:
        return FloatGrid(**data["float"])
    raise ValueError(f"unknown grid {data!r}")


def grid_numbers(grid: Grid) -> list[int]:
    """The grid as operators take it: exponent and mantissa bits and 1, or bits, whether it is symmetric, and 0."""
    if isinstance(grid, FloatGrid):
        return [grid.exponent_bits, grid.mantissa_bits, 1]
    return [grid.bits, int(grid.symmetric), 0]


def grid_of(numbers: Sequence[int]) -> Grid:
    """The inverse of `grid_numbers`."""
    first, second, floating = numbers
    return FloatGrid(first, second) if floating else IntegerGrid(first, bool(second))


def _weights_to_dict(weights: WeightScheme) -> dict[str, Any]:
    return {"grid": grid_to_dict(weights.grid), "granularity": asdict(weights.granularity)}


def _weights_from_dict(data: dict[str, Any]) -> WeightScheme:
    return WeightScheme(grid_from_dict(data["grid"]), Granularity(**data["granularity"]))
