"""The page of `inspect --report`: a model's outlier channels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from channelwise.report.inspection import OUTLIER_RATIO, STRONG_RATIO
from channelwise.report.page.document import render
from channelwise.report.page.files import write_page
from channelwise.report.page.inspection_words import next_command, outlier_channels, summary
from channelwise.report.page.places import block_label, model_title, place_of, short_places, site_names, site_rows


def write_inspection_page(profile: Mapping[str, Any], path: Path) -> None:
    """Writes a profile (`evaluation.profile_data`) as one HTML file. Raises OSError where it cannot be written."""
    write_page(inspection_page(profile), path)


def inspection_page(profile: Mapping[str, Any]) -> str:
    """The page's text."""
    sites = profile["sites"]
    names = site_names(sites)
    labels = [f"{name} of block {site['block']}" for site, name in zip(sites, names, strict=True)]
    data = {
        "recipe": profile["recipe"],
        "schemes": profile["schemes"],
        "outlier": OUTLIER_RATIO,
        "sites": [_site(site, name, row) for site, name, row in zip(sites, names, site_rows(sites), strict=True)],
        "layers": _layers(sites),
    }
    return render(
        "inspection.html",
        data,
        title=f"{model_title(profile['model'])}: outlier channels",
        model=profile["model"],
        model_name=model_title(profile["model"]),
        facts=profile["facts"],
        lines=summary(profile, labels),
        command=next_command(profile),
        recipe=profile["recipe"],
        schemes=profile["schemes"],
        sites=list(zip(sites, names, (outlier_channels(site) for site in sites), strict=True)),
        layers=_layers(sites),
        settings=profile["settings"],
        tokens=max((site["tokens"] for site in sites), default=0),
        hard=(OUTLIER_RATIO, STRONG_RATIO),
    )


def _site(site: Mapping[str, Any], name: str, row: str) -> dict[str, Any]:
    """What the charts read of one site; layers: how many."""
    kept = ("block", "kind", "channels", "tokens", "ratio", "asymmetry", "median", "minima", "maxima", "after")
    return {"name": name, "row": row, "layers": len(site["layers"]), **{key: site[key] for key in kept}}


def _layers(sites: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every linear layer, in order."""
    found = [(site, layer) for site in sites for layer in site["layers"]]
    places = [place_of(layer["name"], site["block"]) for site, layer in found]
    short = short_places(places)
    return [
        {
            "name": layer["name"],
            "block": block_label(site["block"]),
            "place": short[place],
            "shape": layer["shape"],
            "errors": layer["errors"],
        }
        for (site, layer), place in zip(found, places, strict=True)
    ]
