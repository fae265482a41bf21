"""Quantization of inputs to unsigned bytes in one pass: the codes of `numerics.inputs`, bit for bit.

Signed codes are stored plus 128, so that their zero point is 128; codes of an asymmetric grid as they are.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import torch

from channelwise.numerics.floats import lattice_unit
from channelwise.numerics.grids import FloatGrid, Grid
from channelwise.numerics.inputs import largest_code
from channelwise.numerics.transform import ChannelTransform
from channelwise.runtime.cpu.library import INT32, INT64, POINTER, kernels, level_number

UNSIGNED_OFFSET = 128
LARGEST_SIGNED, LARGEST_UNSIGNED = 127, 255

INPUT_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class _Input(ctypes.Structure):
    """channelwise_input of quantize.hpp."""

    _fields_ = (
        ("x", POINTER),
        ("rows", INT64),
        ("columns", INT64),
        ("stride", INT64),
        ("padded", INT64),
        ("codes", POINTER),
        ("code_sums", POINTER),
        ("type", INT32),
    )


class _Grid(ctypes.Structure):
    """channelwise_grid of quantize.hpp."""

    _fields_ = (
        ("kind", INT32),
        ("asymmetric", INT32),
        ("lowest", ctypes.c_float),
        ("highest", ctypes.c_float),
        ("steps", ctypes.c_float),
        ("factor", ctypes.c_float),
        ("offset", ctypes.c_float),
    )


@dataclass(frozen=True)
class InputBytes:
    """Codes of inputs: value = (codes − zero_point) · step.

    codes: uint8 [tokens, padded columns]; code_sums: int32 [tokens], Σ_k codes_mk; step: float32 [tokens], None where
    it is static; zero_point: a whole number, or int32 [tokens].
    """

    codes: torch.Tensor
    code_sums: torch.Tensor
    step: torch.Tensor | None
    zero_point: int | torch.Tensor


@dataclass(frozen=True)
class StaticQuantizer:
    """The vectors of a static quantizer, made once by `static_quantizer`.

    multiplier, offset, gain: float32 [channels], offset and gain None where there is none. zero_offset: what is added
    to codes, 128 or 0.
    """

    grid: Grid
    multiplier: torch.Tensor
    offset: torch.Tensor | None
    gain: torch.Tensor | None
    zero_offset: int
    _arguments: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        vectors = (self.multiplier, self.offset, self.gain)
        pointers = (0 if vector is None else vector.data_ptr() for vector in vectors)
        object.__setattr__(self, "_arguments", (_grid(self.grid)[1], *pointers))


def static_quantizer(
    channels: int,
    multiplier: torch.Tensor,
    offset: torch.Tensor | None,
    grid: Grid,
    exponents: torch.Tensor | None = None,
) -> StaticQuantizer:
    """The quantizer clamp(round(x · multiplier + offset)), its codes times 2^(largest − exponent_j) where given.

    multiplier, offset: float32 [] or [channels], from `numerics.inputs.static_vectors`; exponents: integers [channels].
    Raises ValueError if codes leave 8 bits, or for a wrong shape or dtype.
    """
    powers = None
    if exponents is not None and exponents.numel():
        if exponents.shape != (channels,) or exponents.is_floating_point():
            raise ValueError(f"exponents are integers [{channels}], not {exponents.dtype} {list(exponents.shape)}")
        powers = exponents.long().max() - exponents.long()
    largest = largest_code(grid) * 2 ** (0 if powers is None else int(powers.max()))
    zero_offset = _zero_offset(grid, largest)
    gain = None if powers is None else torch.exp2(powers.float()) * _factor(grid)
    vectors = [_vector(name, vector, channels) for name, vector in (("multiplier", multiplier), ("offset", offset))]
    assert vectors[0] is not None
    return StaticQuantizer(grid, vectors[0], vectors[1], gain, zero_offset)


def static_bytes(
    x: torch.Tensor, quantizer: StaticQuantizer, padded: int, level: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of a static quantizer, and their sums per token.

    x: [tokens, channels], float32, bfloat16 or float16, channels next to each other in memory. padded: columns of the
    result, `integer.padded_columns`. Returns uint8 [tokens, padded], zeros in the padding, and int32 [tokens].
    level: see `library.LEVELS`. Raises ValueError for a wrong shape, dtype or device.
    """
    codes, code_sums, arguments = _prepared(x, quantizer.multiplier.shape[0], padded)
    _functions().static(ctypes.byref(arguments), *quantizer._arguments, level_number(level), torch.get_num_threads())
    return codes, code_sums


def token_bytes(
    x: torch.Tensor, transform: ChannelTransform, grid: Grid, padded: int, level: str | None = None
) -> InputBytes:
    """Codes with a step (and zero point) per token, as `numerics.inputs.token_codes` finds them.

    x, padded, level: see `static_bytes`. transform: parts float32 [channels]. Raises ValueError if codes leave 8 bits,
    or for a wrong shape, dtype or device.
    """
    tokens, channels = x.shape
    _zero_offset(grid, largest_code(grid))
    shift, scale = _address("shift", transform.shift, channels), _address("scale", transform.scale, channels)
    description, grid_address = _grid(grid)
    codes, code_sums, arguments = _prepared(x, channels, padded)
    step = torch.empty(tokens, dtype=torch.float32)
    zero_points = torch.empty(tokens, dtype=torch.int32) if description.asymmetric else None
    span, unit = (grid.largest_value, lattice_unit(grid)) if isinstance(grid, FloatGrid) else (grid.highest, 1.0)
    _functions().token(
        ctypes.byref(arguments), grid_address, shift, scale, span, unit, step.data_ptr(),
        0 if zero_points is None else zero_points.data_ptr(), level_number(level), torch.get_num_threads(),
    )  # fmt: skip
    return InputBytes(codes, code_sums, step, UNSIGNED_OFFSET if zero_points is None else zero_points)


def _prepared(x: torch.Tensor, channels: int, padded: int) -> tuple[torch.Tensor, torch.Tensor, _Input]:
    kind = INPUT_TYPES.get(x.dtype)
    if kind is None or not x.is_cpu or x.dim() != 2 or x.shape[1] != channels or (channels > 1 and x.stride(1) != 1):
        raise ValueError(
            f"x is {x.dtype} {list(x.shape)}, needed is float32, bfloat16 or float16 [tokens, {channels}] on the CPU, "
            "channels next to each other"
        )
    if padded < channels:
        raise ValueError(f"{padded} columns do not hold {channels} channels")
    tokens = x.shape[0]
    codes, code_sums = torch.empty(tokens, padded, dtype=torch.uint8), torch.empty(tokens, dtype=torch.int32)
    arguments = _Input(
        x.data_ptr(), tokens, channels, x.stride(0), padded, codes.data_ptr(), code_sums.data_ptr(), kind
    )
    return codes, code_sums, arguments


def _zero_offset(grid: Grid, largest: int) -> int:
    """What makes codes up to `largest` bytes."""
    signed = grid.lowest < 0
    if largest > (LARGEST_SIGNED if signed else LARGEST_UNSIGNED):
        raise ValueError(f"codes up to {largest} do not fit 8 bits")
    return UNSIGNED_OFFSET if signed else 0


def _factor(grid: Grid) -> float:
    return 1.0 / lattice_unit(grid) if isinstance(grid, FloatGrid) else 1.0


@cache
def _grid(grid: Grid) -> tuple[_Grid, int]:
    """The grid for C++, and its address."""
    if isinstance(grid, FloatGrid):
        # See numerics.floats: adding so many steps and taking them off again rounds.
        steps = 1.5 * 2.0 ** (23 - grid.mantissa_bits)
        one = grid.exponent_bits == 1
        top = grid.largest_value
        description = _Grid(
            1 if one else 2, 0, -top, top, 2.0 * steps if one else steps, _factor(grid), UNSIGNED_OFFSET
        )
    else:
        offset = UNSIGNED_OFFSET if grid.symmetric else 0
        description = _Grid(0, int(not grid.symmetric), grid.lowest, grid.highest, 0.0, 1.0, offset)
    return description, ctypes.addressof(description)


def _vector(name: str, vector: torch.Tensor | None, channels: int) -> torch.Tensor | None:
    if vector is None:
        return None
    if vector.dtype != torch.float32 or vector.shape not in ((), (1,), (channels,)) or not vector.is_cpu:
        raise ValueError(f"{name} is float32 [] or [{channels}] on the CPU, not {vector.dtype} {list(vector.shape)}")
    return vector.expand(channels).contiguous()


def _address(name: str, vector: torch.Tensor | None, channels: int) -> int:
    if vector is None:
        return 0
    if vector.dtype != torch.float32 or vector.shape != (channels,) or not vector.is_contiguous() or not vector.is_cpu:
        raise ValueError(f"{name} is float32 [{channels}] on the CPU, not {vector.dtype} {list(vector.shape)}")
    return vector.data_ptr()


@dataclass(frozen=True)
class _Functions:
    static: Callable[..., None]
    token: Callable[..., None]


@cache
def _functions() -> _Functions:
    library = kernels()
    static, token = library.channelwise_static_bytes, library.channelwise_token_bytes
    static.argtypes = [POINTER] * 5 + [INT32, INT32]
    token.argtypes = [POINTER] * 4 + [ctypes.c_float, ctypes.c_float, POINTER, POINTER, INT32, INT32]
    for function in (static, token):
        function.restype = None
    return _Functions(static, token)
