"""What a profile says, in words: what is hard about the model, what it costs, what could be folded, what to try."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from types import SimpleNamespace
from typing import Any

from channelwise.report.format import number
from channelwise.report.inspection import OUTLIER_RATIO, Outlook, difficulty, outlook, remedy, suggested_recipes
from channelwise.report.page.document import percent, significant
from channelwise.report.page.places import place_of, short_places

Site = Mapping[str, Any]


@dataclass(frozen=True)
class Line:
    """What the page says about one thing: sentences, and a list behind them."""

    heading: str
    text: str
    items: tuple[str, ...] = ()


def summary(profile: Mapping[str, Any], labels: Sequence[str]) -> list[Line]:
    """The page's opening. labels: what each site is called, with its block."""
    sites = profile["sites"]
    found = profile_outlook(sites)
    lines = [Line("What is hard", f"{_capital(difficulty(found))} {_where(sites, labels)}".strip())]
    lines += cost_lines(profile)
    lines.append(Line("What can be folded", _folds(sites)))
    lines.append(Line("What to try", _capital(remedy(found))))
    return lines


def cost_lines(profile: Mapping[str, Any]) -> list[Line]:
    """What plain schemes and the recipe would cost, and what the recipe's transform does."""
    lines = []
    costs = _costs(profile)
    if costs:
        what = "Relative error of a layer's output, in the median layer and in the worst:"
        lines.append(Line("What it costs", what, costs))
    if profile["recipe"]:
        lines.append(Line("What a transform does", _effect(profile["sites"], profile["recipe"])))
    return lines


def profile_outlook(sites: Sequence[Site]) -> Outlook:
    """The figures that the advice rests on."""
    return outlook(SimpleNamespace(**site) for site in sites)


def next_command(profile: Mapping[str, Any]) -> str:
    """The command that tries what is suggested."""
    recipes = ",".join(dict.fromkeys(["rtn-w8a8", *suggested_recipes(profile_outlook(profile["sites"]))]))
    data = str(profile["settings"]["data"])
    model = shlex.quote(profile["model"])
    return f"channelwise compare {model} --recipes {recipes} --data {shlex.quote(data)} --report comparison.html"


def outlier_channels(site: Site) -> int:
    """How many channels reach beyond OUTLIER_RATIO times the median channel."""
    limit = OUTLIER_RATIO * site["median"]
    return sum(max(abs(low), abs(high)) > limit for low, high in zip(site["minima"], site["maxima"], strict=True))


def _where(sites: Sequence[Site], labels: Sequence[str]) -> str:
    """The hardest site, and how few channels make it hard."""
    hardest = max(range(len(sites)), key=lambda index: sites[index]["ratio"], default=None)
    if hardest is None or sites[hardest]["ratio"] < OUTLIER_RATIO:
        return ""
    site = sites[hardest]
    count = outlier_channels(site)
    hard = sum(other["ratio"] >= OUTLIER_RATIO for other in sites)
    return (
        f"The hardest is {labels[hardest]}: {count} of {site['channels']:,} channels "
        f"reach{'es' if count == 1 else ''} beyond {OUTLIER_RATIO:.0f} times the median channel, "
        f"the largest |x| is {significant(site['largest'])}, the median channel's {significant(site['median'])}. "
        f"{hard} of {len(sites)} sites are like that."
    )


def _costs(profile: Mapping[str, Any]) -> tuple[str, ...]:
    """A line for each scheme."""
    layers = [(layer, site["block"]) for site in profile["sites"] for layer in site["layers"]]
    short = short_places(place_of(layer["name"], block) for layer, block in layers)
    lines = []
    for scheme in profile["schemes"]:
        errors = [(layer["errors"][scheme], index) for index, (layer, _) in enumerate(layers)]
        known = [(error, index) for error, index in errors if error is not None]
        if known:
            worst, index = max(known)
            layer, block = layers[index]
            where = f"{short[place_of(layer['name'], block)]} of block {block}"
            lines.append(f"{scheme}: {percent(median(error for error, _ in known))}, {percent(worst)} ({where})")
    return tuple(lines)


def _effect(sites: Sequence[Site], recipe: str) -> str:
    treated = [site for site in sites if site["after"] and (site["after"]["shift"] or site["after"]["scale"])]
    if not treated:
        return f"{recipe} transforms no channels here: it relies on its grids, scales and rounding."
    before = max(site["ratio"] for site in treated)
    after = max(site["after"]["ratio"] for site in treated)
    return (
        f"{recipe} transforms {len(treated)} of {len(sites)} sites; the largest channel there goes from "
        f"{number(before, 1)} to {number(after, 1)} times the median channel."
    )


def _folds(sites: Sequence[Site]) -> str:
    folded = [site for site in sites if site["folds_into"]]
    shifted = sum(bool(site["folds_shift"]) for site in folded)
    if not folded:
        return (
            "No site's transform can be folded into the layer before it; it stays at the quantizer, which costs little."
        )
    everywhere = len(folded) == len(sites)
    rest = "" if everywhere else " Elsewhere the transform stays at the quantizer, which costs little."
    where = f"every one of the {len(sites)}" if everywhere else f"{len(folded)} of {len(sites)}"
    return f"A scale can be folded into the module before it at {where} sites, a shift too at {shifted}.{rest}"


def _capital(text: str) -> str:
    """Recipes begin with a small letter and keep it."""
    return text if text.split(" ")[0].count("-") else text[:1].upper() + text[1:]
