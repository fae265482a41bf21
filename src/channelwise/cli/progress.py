"""Progress on standard error: a bar in a terminal, plain lines elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from channelwise.cli.output import messages_console

Report = Callable[[str, int, int], None]


@contextmanager
def reported_progress(silent: bool = False) -> Iterator[Report]:
    """A report(label, done, total) to hand to the API; the bar is gone at the end. silent: nothing is shown."""
    if silent:
        yield lambda label, done, total: None
        return
    console = messages_console()
    if not console.is_terminal:
        yield _plain_lines(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("loading", total=None)
        yield lambda label, done, total: bars.update(task, description=label, completed=done, total=total)


def _plain_lines(console: Console) -> Report:
    """One line for each new label."""
    last = ""

    def report(label: str, done: int, total: int) -> None:
        nonlocal last
        if label != last:
            console.print(label, markup=False)
        last = label

    return report
