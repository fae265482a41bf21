"""How one linear layer is stored and computed; plain data that a checkpoint can write as JSON."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from channelwise.numerics.granularity import Granularity
from channelwise.numerics.grids import FloatGrid, Grid, IntegerGrid


@dataclass(frozen=True)
class WeightScheme:
    """The weight's grid and granularity (of the matrix [out_features, in_features])."""

    grid: Grid
    granularity: Granularity


@dataclass(frozen=True)
class InputScheme:
    """The input's grid, after the channel transform: `static` with one step, or per `token`, found at run time."""

    grid: IntegerGrid
    kind: Literal["static", "token"]


@dataclass(frozen=True)
class LinearScheme:
    """One linear layer: sizes, weight scheme, input scheme (None: inputs stay in floating point), which tensors it has.

    shift and scale say whether the layer applies a channel transform to its input.
    """

    in_features: int
    out_features: int
    weights: WeightScheme
    inputs: InputScheme | None = None
    bias: bool = False
    shift: bool = False
    scale: bool = False


def scheme_to_dict(scheme: LinearScheme) -> dict[str, Any]:
    """The scheme as JSON-able data; `scheme_from_dict` is its inverse."""
    data = asdict(scheme)
    data["weights"]["grid"] = grid_to_dict(scheme.weights.grid)
    if scheme.inputs is not None:
        data["inputs"]["grid"] = grid_to_dict(scheme.inputs.grid)
    return data


def scheme_from_dict(data: dict[str, Any]) -> LinearScheme:
    """The scheme that `scheme_to_dict` wrote. Raises KeyError, TypeError or ValueError on anything else."""
    weights = data["weights"]
    inputs = data["inputs"]
    input_scheme = None
    if inputs is not None:
        grid = grid_from_dict(inputs["grid"])
        if not isinstance(grid, IntegerGrid):
            raise ValueError("inputs are quantized to integers only")
        input_scheme = InputScheme(grid, inputs["kind"])
    return LinearScheme(
        in_features=data["in_features"],
        out_features=data["out_features"],
        weights=WeightScheme(grid_from_dict(weights["grid"]), Granularity(**weights["granularity"])),
        inputs=input_scheme,
        bias=data["bias"],
        shift=data["shift"],
        scale=data["scale"],
    )


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
