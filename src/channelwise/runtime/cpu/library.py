"""The shared library of CPU kernels: found, loaded once, and set to an instruction set level.

Importing torch comes first: the library then shares torch's OpenMP runtime and its threads.
"""

import ctypes
import os
import warnings
from functools import cache
from pathlib import Path

import torch  # noqa: F401  (loads the OpenMP runtime that the library is to share)

LIBRARY = Path(__file__).with_name("_kernels.so")

LEVELS = ("portable", "avx2", "avx512", "amx")
"""Instruction set levels in rising order; C++ counts them from 1, and 0 stands for the best."""

LEVEL_VARIABLE = "CHANNELWISE_CPU"

BEST = 0

POINTER, INT32, INT64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64


@cache
def library() -> ctypes.CDLL | None:
    """The library, loaded at the first call; None where it was not built, which is warned of once.

    Raises ValueError if $CHANNELWISE_CPU names no level, and OSError if the library is there but does not load.
    """
    limit = _limit()
    if not LIBRARY.exists():
        warnings.warn(
            "channelwise's CPU kernels were not built, products run slower with torch: install a C++ compiler and "
            "reinstall channelwise",
            stacklevel=2,
        )
        return None
    loaded = ctypes.CDLL(str(LIBRARY))
    loaded.channelwise_level.argtypes, loaded.channelwise_level.restype = [], INT32
    loaded.channelwise_limit_level.argtypes, loaded.channelwise_limit_level.restype = [INT32], None
    loaded.channelwise_limit_level(limit)
    return loaded


def available() -> bool:
    """Whether the kernels can be called."""
    return library() is not None


def level() -> str:
    """The level that kernels run at, one of `LEVELS`, or "none" without the library."""
    loaded = library()
    return "none" if loaded is None else LEVELS[loaded.channelwise_level() - 1]


def level_number(name: str | None) -> int:
    """The number that C++ knows a level by; `BEST` for None. Raises ValueError for a name that is not in `LEVELS`."""
    if name is None:
        return BEST
    if name not in LEVELS:
        raise ValueError(f"{name!r} is no level of CPU kernels: {', '.join(LEVELS)}")
    return LEVELS.index(name) + 1


def kernels() -> ctypes.CDLL:
    """The library. Raises RuntimeError where there is none."""
    loaded = library()
    if loaded is None:
        raise RuntimeError("the CPU kernels were not built: install a C++ compiler and reinstall channelwise")
    return loaded


def _limit() -> int:
    name = os.environ.get(LEVEL_VARIABLE)
    try:
        return level_number(name or None)
    except ValueError as error:
        raise ValueError(f"{LEVEL_VARIABLE}: {error}") from None
