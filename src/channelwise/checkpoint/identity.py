"""What a run depends on, as plain data: its digest, and how two differ."""

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

Identity = dict[str, Any]
"""Nested dicts and lists of strings, numbers, booleans and None; digests as hexadecimal strings."""

NAMED = 3
"""How many of many differences are told."""
LONGEST_VALUE = 60
"""Characters of a value that is told."""

WORDS = {
    "recipe": "the recipe",
    "model": "the model",
    "data": "the calibration data",
    "samples": "the number of samples",
    "length": "the length of a sample",
    "seed": "the seed",
    "device": "the device",
    "version": "channelwise's version",
}
"""How the parts of an identity are called."""

_DIGEST = re.compile("[0-9a-f]{32,}")
_ABSENT = object()


def normalized(identity: Identity) -> Identity:
    """The identity as JSON gives it back: tuples as lists, keys as strings. Raises TypeError for what JSON lacks."""
    data: Identity = json.loads(json.dumps(identity))
    return data


def digest(identity: Identity) -> str:
    """SHA-256 of the identity, whatever the order of its keys."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def differences(old: Identity, new: Identity) -> tuple[str, ...]:
    """What of an identity has changed, one phrase each: "the recipe's weights.bits was 4 and is 3"."""
    pairs = _leaves(normalized(old), normalized(new), ())
    return tuple(_phrase(path, before, after) for path, before, after in pairs)


def told(phrases: tuple[str, ...]) -> str:
    """The first few phrases, and how many more there are."""
    more = len(phrases) - NAMED
    return "; ".join(phrases[:NAMED]) + (f"; and {more} more" if more > 0 else "")


def _leaves(old: Any, new: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """The innermost places where two trees differ, with what is there: `_ABSENT` for nothing."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from _leaves(old.get(key, _ABSENT), new.get(key, _ABSENT), (*path, key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from _leaves(before, after, (*path, str(index)))
    elif old != new or type(old) is not type(new):
        yield path, old, new


def _phrase(path: tuple[str, ...], old: Any, new: Any) -> str:
    owner = WORDS.get(path[0], path[0]) if path else "the run"
    name = f"{owner}'s {'.'.join(path[1:])}" if len(path) > 1 else owner
    if any(isinstance(value, str) and _DIGEST.fullmatch(value) for value in (old, new)):
        return f"{name} has changed"
    return f"{name} was {_shown(old)} and is {_shown(new)}"


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "not there"
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"
