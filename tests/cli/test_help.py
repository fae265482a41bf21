"""What `--help` of each verb shows, and what it does not import for it."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable

import pytest
import typer

from channelwise.cli.app import app
from channelwise.cli.examples import EXAMPLES
from tests.cli.conftest import Run

COMMAND = typer.main.get_command(app)
VERBS = sorted(COMMAND.commands)  # type: ignore[attr-defined]
HEAVY = {"torch", "transformers", "numpy", "plotly", "jinja2", "lm_eval", "compressed_tensors", "fastapi"}

# Everything that the program imports for --help of the verbs that follow as arguments, as a JSON list.
IMPORTED = """
import contextlib, io, json, sys
verbs, sys.argv = sys.argv[1:], ["channelwise"]
from channelwise.cli import process
with contextlib.redirect_stdout(io.StringIO()):
    statuses = [process.run([*verb.split(), "--help"]) for verb in ["", *verbs]]
assert set(statuses) == {0}, statuses
print(json.dumps(sorted(sys.modules)))
"""


def commands_in(help_text: str) -> list[list[str]]:
    """The words of each command below the heading, without what the shell does with the output."""
    _, heading, examples = help_text.partition("\n  Example")
    assert heading
    lines = examples.partition("\n")[2].replace("\\\n", " ").splitlines()
    return [shlex.split(line.partition(" > ")[0]) for line in lines if line.strip()]


def test_the_verbs_are_those_that_have_examples() -> None:
    assert set(VERBS) == set(EXAMPLES)


@pytest.mark.parametrize("verb", VERBS)
def test_help_ends_with_commands_that_the_verb_takes(run: Callable[..., Run], verb: str) -> None:
    done = run(verb, "--help")
    assert done.status == 0
    commands = commands_in(done.stdout)
    assert commands
    for program, name, *arguments in commands:
        assert (program, name) == ("channelwise", verb)
        # Parses like the program does, and raises for what the verb does not know or lacks.
        COMMAND.commands[verb].make_context(verb, arguments)  # type: ignore[attr-defined]


@pytest.mark.parametrize("verb", VERBS)
def test_help_fits_into_eighty_columns(run: Callable[..., Run], verb: str) -> None:
    assert max(map(len, run(verb, "--help").stdout.splitlines())) <= 80


@pytest.mark.parametrize("verb", VERBS)
def test_help_begins_with_what_the_verb_does(run: Callable[..., Run], verb: str) -> None:
    usage, empty, summary, *_ = run(verb, "--help").stdout.splitlines()
    assert usage.startswith(f"Usage: channelwise {verb} ")
    assert not empty and summary.strip()[0].isupper() and "`" not in summary


def test_help_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTED, *VERBS], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    imported = set(json.loads(done.stdout))
    assert "typer" in imported
    assert not imported & HEAVY
