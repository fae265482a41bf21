"""What a comparison says, in words: what is best at each size, how far from the original, what failed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from channelwise.report.format import number
from channelwise.report.page.document import percent, significant
from channelwise.report.page.quality import Measure, Results, finished_recipes, is_weight_only, widths


@dataclass(frozen=True)
class Scored:
    """A recipe with its results and its loss by the measure that speaks for it."""

    name: str
    results: Results
    loss: float


@dataclass(frozen=True)
class Best:
    """The best recipe of one width: `W8A8`, its name, what it loses, how, and how many others there are."""

    widths: str
    name: str
    loss: str
    verdict: str
    others: int


def scored(comparison: Mapping[str, Any], measure: Measure) -> list[Scored]:
    """The finished recipes that have the measure, the least loss first."""
    found = []
    for name, results in finished_recipes(comparison).items():
        loss = measure.loss(results, comparison["fp"])
        if loss is not None:
            found.append(Scored(name, results, loss))
    return sorted(found, key=lambda recipe: recipe.loss)


def best_by_width(recipes: list[Scored], measure: Measure) -> list[Best]:
    """A line for each width of weights and inputs, the widest first, inputs before weights alone."""
    groups: dict[str, list[Scored]] = {}
    for recipe in sorted(recipes, key=_width_order):
        groups.setdefault(widths(recipe.results), []).append(recipe)
    return [
        Best(
            width,
            best.name,
            loss_text(best.loss, measure),
            measure.verdict(best.loss),
            len(group) - 1,
        )
        for width, group in groups.items()
        for best in [min(group, key=lambda recipe: recipe.loss)]
    ]


def summary(comparison: Mapping[str, Any], measure: Measure | None, front: Mapping[str, list[str]]) -> list[str]:
    """Sentences. front: the names on the Pareto front, of weights alone and of weights and inputs."""
    if measure is None:
        return ["No quality was measured; give --perplexity TEXT or another question to see what the recipes lose."]
    recipes = scored(comparison, measure)
    sentences = [_closest(recipes, measure), _smallest(recipes, measure), _fronts(front), _fastest(recipes)]
    sentences.append(_failures(recipes, measure))
    return [sentence for sentence in sentences if sentence]


def loss_text(loss: float, measure: Measure) -> str:
    """`+1.2 %`, `3.4 × FP` of perplexities; `−2.1 points` of shares."""
    if measure.kind == "ratio":
        if loss >= 1.0:
            return f"{significant(1.0 + loss)} × FP"
        return f"{'+' if loss >= 0 else '−'}{percent(abs(loss))}"
    return f"{'−' if loss >= 0 else '+'}{significant(100 * abs(loss))} points"


def _width_order(recipe: Scored) -> tuple[int, int, int]:
    bits, inputs = recipe.results.get("weights_bits") or 0, recipe.results.get("inputs_bits") or 0
    return (int(is_weight_only(recipe.results)), -bits, -inputs)


def _closest(recipes: list[Scored], measure: Measure) -> str:
    best = recipes[0]
    what = "perplexity" if measure.kind == "ratio" else measure.label
    return (
        f"Closest to floating point is {best.name} at {_bits(best.results)}: {what} {loss_text(best.loss, measure)}"
        f"{_worth(measure.verdict(best.loss))}."
    )


def _worth(verdict: str) -> str:
    words = {
        "close": ", which is as good as the original for most uses",
        "fair": ", a loss that can be seen",
        "poor": ", which is a great loss",
        "failed": ": no recipe here keeps the model whole",
    }
    return words[verdict]


def _smallest(recipes: list[Scored], measure: Measure) -> str:
    """The smallest that is close, and the smallest that is fair."""
    sized = [recipe for recipe in recipes if recipe.results.get("bits_per_weight") is not None]
    parts = []
    for verdicts, most in zip((("close",), ("close", "fair")), _steps(measure), strict=True):
        fitting = [recipe for recipe in sized if measure.verdict(recipe.loss) in verdicts]
        if fitting:
            least = min(fitting, key=lambda recipe: (recipe.results["bits_per_weight"], recipe.loss))
            what = f"{least.name} ({_bits(least.results)}, {loss_text(least.loss, measure)})"
            parts.append(f"with a loss of at most {most}: {what}")
    if not parts:
        return f"None stays within {_steps(measure)[1]} of the original; the plot shows what is lost at which size."
    return f"Smallest {', '.join(parts)}."


def _steps(measure: Measure) -> tuple[str, str]:
    """Up to where a loss is close, and fair, in words."""
    return ("1 %", "10 %") if measure.kind == "ratio" else ("1 point", "5 points")


def _fronts(front: Mapping[str, list[str]]) -> str:
    """Who is not beaten in size and quality at once."""
    parts = [f"with {label}: {', '.join(names)}" for label, names in front.items() if names]
    return f"On the Pareto front (no other is both smaller and better) are, {'; '.join(parts)}." if parts else ""


def _fastest(recipes: list[Scored]) -> str:
    parts = []
    for key, words in (("prefill", "at reading a prompt"), ("decode", "at generating")):
        timed = [(recipe.name, (recipe.results.get("speed_over_fp") or {}).get(key)) for recipe in recipes]
        known = [(name, ratio) for name, ratio in timed if ratio is not None]
        if known:
            name, ratio = max(known, key=lambda pair: pair[1])
            faster = f"{name}, {number(ratio, 2)} times the original's speed"
            parts.append(f"{words}: {faster if ratio > 1 else 'none is faster than the original'}")
    return f"Fastest {'; '.join(parts)}." if parts else ""


def _failures(recipes: list[Scored], measure: Measure) -> str:
    failed = [recipe for recipe in reversed(recipes) if measure.verdict(recipe.loss) == "failed"]
    if not failed:
        return ""
    named = ", ".join(f"{recipe.name} ({loss_text(recipe.loss, measure)})" for recipe in failed[:4])
    more = f" and {len(failed) - 4} more" if len(failed) > 4 else ""
    verb = "fails" if len(failed) == 1 else "fail"
    return f"{named}{more} {verb} badly on this model: do not use {'it' if len(failed) == 1 else 'them'} here."


def _bits(results: Results) -> str:
    bits = results.get("bits_per_weight")
    return widths(results) if bits is None else f"{number(bits, 2)} bits per weight"
