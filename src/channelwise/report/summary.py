"""What to tell after a model was quantized."""

from collections import Counter
from typing import Any, Protocol

from rich.console import Group
from rich.table import Table
from rich.text import Text

from channelwise.report.format import duration, megabytes, number, short_path


class Outcome(Protocol):
    """What `api.quantize` returns, as far as this page reads it."""

    @property
    def skeleton(self) -> Any:
        """The quantized model, with or without its weights."""

    @property
    def before(self) -> Any:
        """Sizes of the model that was read."""

    @property
    def after(self) -> Any:
        """Sizes of the quantized model."""

    @property
    def record(self) -> Any:
        """The walk: sites and seconds."""

    @property
    def resumed(self) -> int:
        """How many stages an earlier run had finished."""


def quantize_summary(model: str, recipe: str, output: str, outcome: Outcome) -> Group:
    """Size before and after, bits, time, place, and the next two commands."""
    before, after = outcome.before, outcome.after
    layers = sum(len(site.linears) for site in outcome.record.sites)
    facts = Table.grid(padding=(0, 3))
    share = after.model_bytes / before.model_bytes
    facts.add_row(_label("size"), f"{megabytes(before.model_bytes)} → {megabytes(after.model_bytes)}   ({share:.0%})")
    facts.add_row(
        _label("bits per weight"),
        f"{number(before.bits_per_weight, 2)} → {number(after.bits_per_weight, 2)}   ({layers} linear layers)",
    )
    for label, counts in _choices(outcome.record.sites).items():
        facts.add_row(_label(label), ", ".join(f"{name} in {count}" for name, count in counts.most_common()))
    if outcome.record.floating:
        facts.add_row(_label("floating point"), _few(outcome.record.floating))
    facts.add_row(_label("time"), duration(outcome.record.seconds) + _resumed(outcome.resumed))
    facts.add_row(_label("written to"), short_path(output))
    for warning, places in _warnings(outcome.record.sites).items():
        facts.add_row(Text("warning", style="yellow"), f"{warning}   ({len(places)} sites: {_few(places)})")
    heading = Text.assemble((short_path(model), "bold"), " quantized by ", (recipe, "bold"), "\n")
    usage = Text(_usage(short_path(model), short_path(output), outcome.skeleton))
    return Group(heading, facts, Text("\nuse it", style="dim"), usage)


CHOICES = {"weights": "weight formats", "inputs": "input formats", "direction": "group direction"}
"""Notes of layers that say what was chosen, and what they are called."""


def _choices(sites: Any) -> dict[str, Counter[str]]:
    """How often each format or direction was chosen, for what there was to choose."""
    found: dict[str, Counter[str]] = {}
    for site in sites:
        for notes in site.layers.values():
            for key, label in CHOICES.items():
                if key in notes:
                    found.setdefault(label, Counter())[str(notes[key])] += 1
    return found


def _resumed(stages: int) -> str:
    """What an earlier run had done."""
    return f"   (with --resume: {stages} stage{'s were' if stages > 1 else ' was'} finished before)" if stages else ""


NAMED = 3
"""How many of many names are told."""


def _few(names: Any) -> str:
    """The first names, and how many more there are."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _warnings(sites: Any) -> dict[str, list[str]]:
    """The sites' names by the warning that they got."""
    found: dict[str, list[str]] = {}
    for site in sites:
        if "warning" in site.notes:
            found.setdefault(str(site.notes["warning"]), []).append(site.name)
    return found


def _usage(source: str, output: str, model: Any) -> str:
    """Commands that fit what the model is for."""
    commands = [f"channelwise evaluate {output} {_question(source, model)}"]
    if model.can_generate():
        commands.insert(0, f'channelwise generate {output} --prompt "…"')
    commands.append(f'python: model, tokenizer = channelwise.load("{output}")')
    return "\n".join(f"  {command}" for command in commands)


def _question(source: str, model: Any) -> str:
    """What to ask of such a model."""
    if model.can_generate():
        return "--perplexity TEXT"
    kind = type(model).__name__
    if kind.endswith("ForImageClassification"):
        return f"--images DIR --against {source}"
    if kind.endswith("ForSequenceClassification"):
        return f"--classification FILE.tsv --against {source}"
    return f"--embeddings FILE.tsv --against {source}"


def _label(text: str) -> Text:
    return Text(text, style="dim")
