"""What a comparison measured, as one kind of thing: figures of quality, their losses against the original, fronts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Results = Mapping[str, Any]
Verdict = Literal["close", "fair", "poor", "failed"]

LIMITS = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Losses at which the readable part of a chart may end."""

READABLE_SHARE = 2 / 3
"""The readable part of a chart holds at least so many of the recipes."""


@dataclass(frozen=True)
class Measure:
    """A figure of quality.

    label: for headings and axes; of: the figure in a model's results, None where it was not measured. kind: `ratio` to
    the original's perplexity, lower is better, loss = ratio − 1; or a `share`, higher is better, loss = what is missing
    to the original's.
    """

    key: str
    label: str
    kind: Literal["ratio", "share"]
    of: Callable[[Results], float | None]

    def loss(self, results: Results, floating: Results) -> float | None:
        """How much worse than the original; below 0 where it is better."""
        value, original = self.of(results), self.of(floating)
        if value is None or original is None:
            return None
        return value - 1.0 if self.kind == "ratio" else original - value

    def verdict(self, loss: float) -> Verdict:
        """In four steps: perplexity up by 1 %, 10 %, doubled; shares down by 1, 5, 20 points."""
        close, fair, poor = (0.01, 0.1, 1.0) if self.kind == "ratio" else (0.01, 0.05, 0.2)
        return "close" if loss <= close else "fair" if loss <= fair else "poor" if loss <= poor else "failed"


@dataclass(frozen=True)
class Size:
    """A measure of size: its key in the results, and what it is called."""

    key: str
    label: str


SIZES = (Size("bits_per_weight", "bits per weight"), Size("model_bytes", "model size"))


def task_accuracy(results: Results) -> float | None:
    """The mean accuracy over the tasks that have one."""
    found = [scores["acc"] for scores in (results.get("tasks") or {}).values() if scores.get("acc") is not None]
    return sum(found) / len(found) if found else None


def _entry(key: str) -> Callable[[Results], float | None]:
    return lambda results: results.get(key)


MEASURES = (
    Measure("perplexity_ratio", "perplexity over FP's", "ratio", _entry("perplexity_ratio")),
    Measure("tasks", "mean accuracy of the tasks", "share", task_accuracy),
    Measure("agreement", "agreement with FP's answers", "share", _entry("agreement")),
    Measure("accuracy", "accuracy", "share", _entry("accuracy")),
    Measure("cosine_mean", "cosine to FP's embeddings", "share", _entry("cosine_mean")),
    Measure("probe_accuracy", "linear probe's accuracy", "share", _entry("probe_accuracy")),
)
"""In the order in which one of them speaks for a recipe, if several were measured."""


def measured(comparison: Mapping[str, Any]) -> list[Measure]:
    """The measures that the original and at least one recipe have."""
    finished = finished_recipes(comparison).values()
    return [
        measure
        for measure in MEASURES
        if measure.of(comparison["fp"]) is not None and any(measure.of(results) is not None for results in finished)
    ]


def finished_recipes(comparison: Mapping[str, Any]) -> dict[str, Results]:
    """The recipes that did not end with an error."""
    return {name: results for name, results in comparison["recipes"].items() if not results.get("error")}


def is_weight_only(results: Results) -> bool:
    """Whether inputs stay in floating point."""
    return results.get("inputs_bits") is None


def widths(results: Results) -> str:
    """`W8A8`, or `W4` where inputs stay in floating point."""
    bits = f"W{results.get('weights_bits', '?')}"
    return bits if is_weight_only(results) else f"{bits}A{results['inputs_bits']}"


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names of the points (size, loss) that no other one is better than in one and as good in the other, by size."""
    front = [
        name
        for name, (size, loss) in points.items()
        if not any(
            other_size <= size and other_loss <= loss and (other_size, other_loss) != (size, loss)
            for other_size, other_loss in points.values()
        )
    ]
    return sorted(front, key=lambda name: points[name])


def readable_limit(losses: Sequence[float]) -> float:
    """The least of LIMITS within which READABLE_SHARE of the losses lie: a few bad ones do not squeeze the rest."""
    enough = READABLE_SHARE * len(losses)
    return next((limit for limit in LIMITS if sum(loss <= limit for loss in losses) >= enough), LIMITS[-1])
