"""What a run will take, as people read it before they start it."""

from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from channelwise.report.format import duration, megabytes, short_path

WORDS = {
    "read": "reading",
    "sites": "finding sites",
    "statistics": "statistics",
    "choose": "searching",
    "round": "rounding",
    "advance": "running on",
    "write": "writing",
}
"""The phases of a block, as they are shown."""


def forecast_page(model: str, recipe: str, output: str, expected: Any) -> Group:
    """What will be done, and what it takes in memory, disk and time. expected: a `forecasting.Forecast`."""
    facts = Table.grid(padding=(0, 3))
    size = f"{megabytes(expected.bytes_before)} → about {megabytes(expected.bytes_after)}"
    facts.add_row(_label("size"), f"{size}   ({expected.bytes_after / expected.bytes_before:.0%})")
    blocks = f"{expected.blocks}, the largest {megabytes(expected.largest_block)}"
    facts.add_row(_label("blocks"), blocks + ("" if expected.streamed else "   (the model has to be whole in memory)"))
    facts.add_row(_label("to quantize"), f"{expected.linears} linear layers at {expected.sites} sites")
    facts.add_row(_label("calibration"), f"{expected.samples} samples, {expected.tokens:,} tokens")
    facts.add_row(_label("hidden states"), _hidden(expected))
    facts.add_row(_label("peak memory"), f"about {megabytes(expected.peak_bytes)}")
    facts.add_row(_label("disk"), f"{megabytes(expected.bytes_after)}, and {megabytes(expected.disk_bytes)} meanwhile")
    facts.add_row(_label("time"), f"about {duration(expected.seconds)}")
    facts.add_row(_label("first block"), _phases(expected.first))
    heading = Text.assemble((short_path(model), "bold"), " by ", (recipe, "bold"), ": the plan\n")
    tail = Text(f"\nMeasured on the first block; nothing was written to {short_path(output)}.", style="dim")
    return Group(heading, facts, tail)


def _hidden(expected: Any) -> str:
    on_disk = expected.hidden_bytes - expected.kept_bytes
    if on_disk <= 0:
        return f"{megabytes(expected.hidden_bytes)} in memory"
    return f"{megabytes(expected.kept_bytes)} in memory, {megabytes(on_disk)} on disk"


def _phases(seconds: dict[str, float]) -> str:
    """The phases that take a twentieth of the block's time and more, the longest first."""
    total = sum(seconds.values())
    shares = sorted(((taken, phase) for phase, taken in seconds.items() if taken >= total / 20), reverse=True)
    told = ", ".join(f"{WORDS.get(phase, phase)} {duration(taken)}" for taken, phase in shares)
    return f"{duration(total)}   ({told})"


def _label(text: str) -> Text:
    return Text(text, style="dim")
