"""A profile as plain data, for JSON and for pages."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import nn

from channelwise.evaluation.profile import SiteProfile, TransformedInput
from channelwise.evaluation.profile_schemes import PLAIN_SCHEMES
from channelwise.model.blocks import find_blocks
from channelwise.model.linears import linear_names


def profile_data(
    name: str,
    model: nn.Module,
    sites: Sequence[SiteProfile],
    *,
    recipe: str | None,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """{"model": name, "facts": {…}, "recipe": …, "schemes": […], "settings": {…}, "sites": […]}.

    name: what the model is called. recipe: the one of the profile. settings: kept as given.
    The channels' minima and maxima are rounded to four digits.
    """
    schemes = [*PLAIN_SCHEMES, *([recipe] if recipe else [])]
    return {
        "model": name,
        "facts": _facts(model),
        "recipe": recipe,
        "schemes": schemes,
        "settings": dict(settings),
        "sites": [_site_data(site) for site in sites],
    }


def _facts(model: nn.Module) -> dict[str, Any]:
    blocks = find_blocks(model)
    return {
        "architecture": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "blocks": len(blocks.names),
        "linear_layers": sum(len(linear_names(block)) for block in blocks.modules(model)),
    }


def _site_data(site: SiteProfile) -> dict[str, Any]:
    data: dict[str, Any] = {**asdict(site.outliers), "linears": list(site.outliers.linears)}
    data |= {"minima": _rounded(site.minima), "maxima": _rounded(site.maxima)}
    data["after"] = None if site.transformed is None else _transformed_data(site.transformed)
    data["layers"] = [
        {"name": layer.name, "shape": list(layer.shape), "errors": dict(layer.errors)} for layer in site.layers
    ]
    return data


def without_channels(profile: Mapping[str, Any]) -> dict[str, Any]:
    """The same data without the channels' ranges."""
    vectors = ("minima", "maxima")

    def lean(part: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in part.items() if key not in vectors}

    sites = [{**lean(site), "after": site["after"] and lean(site["after"])} for site in profile["sites"]]
    return {**profile, "sites": sites}


def _transformed_data(transformed: TransformedInput) -> dict[str, Any]:
    return {
        **asdict(transformed.figures),
        "shift": transformed.shift,
        "scale": transformed.scale,
        "notes": {key: _known(value) for key, value in transformed.notes.items()},
        "minima": _rounded(transformed.minima),
        "maxima": _rounded(transformed.maxima),
    }


def _known(value: float | str) -> float | str | None:
    """None for a number that JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _rounded(values: Sequence[float]) -> list[float]:
    """To four significant digits, which is more than a chart shows."""
    return [float(f"{value:.4g}") for value in values]
