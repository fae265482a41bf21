"""Layers and sites by where they are: the block, and the place in it that all blocks share."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

HEAD = "head"
"""What stands for the block of a layer behind the blocks."""


def place_of(name: str, block: int | None) -> str:
    """The name within its block, the numbers of experts left open: `mlp.experts.*.down_proj`."""
    if block is not None:
        _, found, inside = name.partition(f".{block}.")
        name = inside if found else name
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def short_places(places: Iterable[str]) -> dict[str, str]:
    """For each place as many of its last parts as tell it from the others; order is kept."""
    distinct = list(dict.fromkeys(places))

    def ending(place: str, parts: int) -> str:
        return ".".join(place.split(".")[-parts:])

    short = {}
    for place in distinct:
        longest = len(place.split("."))
        short[place] = next(
            (
                ending(place, parts)
                for parts in range(1, longest)
                if sum(ending(other, parts) == ending(place, parts) for other in distinct) == 1
            ),
            place,
        )
    return short


def joined(names: Sequence[str]) -> str:
    """Names of layers that read one input, as one: `q,k,v_proj`, `fc1`, `query, key, value`."""
    stem, _, ending = names[0].rpartition("_")
    if len(names) > 1 and stem and all(re.fullmatch(rf"[^_]+_{re.escape(ending)}", name) for name in names):
        return ",".join(name.removesuffix(f"_{ending}") for name in names) + f"_{ending}"
    return ", ".join(names)


def model_title(name: str) -> str:
    """A model's name for a heading: of a folder's path the last part; hub names stay whole."""
    is_path = name.startswith(("/", ".", "~")) or "\\" in name
    return PurePath(name).name or name if is_path else name


def block_label(block: int | None) -> str:
    """What charts and tables call a block."""
    return HEAD if block is None else str(block)


def site_rows(sites: Sequence[Mapping[str, Any]]) -> list[str]:
    """For sites with `block` and `linears`, the place that they share with those of other blocks and experts."""
    places = [[place_of(name, site["block"]) for name in site["linears"]] for site in sites]
    short = short_places(place for names in places for place in names)
    return [joined([short[place] for place in names]) for names in places]


def site_names(sites: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each site is called within its block: its row, with the numbers of an expert."""
    rows = site_rows(sites)
    return [f"{row}{_numbers(site['linears'][0], site['block'])}" for site, row in zip(sites, rows, strict=True)]


def _numbers(name: str, block: int) -> str:
    """` 3` for the expert 3's layer, nothing where there is no number within the block."""
    numbers = [part for part in name.partition(f".{block}.")[2].split(".") if part.isdigit()]
    return f" {'.'.join(numbers)}" if numbers else ""
