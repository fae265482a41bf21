"""Sizes of memory as people write them."""

import re

from channelwise.errors import InputError

UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def bytes_of(text: str, option: str) -> int:
    """Bytes of "2GiB", "500 MB" or "1000000". Raises InputError, naming the option, for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    unit = None if found is None else UNITS.get(found[2])
    if found is None or unit is None:
        raise InputError(f"{option} {text!r} is no size; give a number with a unit, such as 2GiB or 500MB")
    return int(float(found[1]) * unit)
