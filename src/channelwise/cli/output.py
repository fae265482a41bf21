"""Where things are printed: results on standard output, everything else on standard error."""

import json
import os
import sys
from typing import IO, Any

from rich.console import Console

_WIDTH_OF_FILES = 100


def results_console() -> Console:
    """The console of results, standard output."""
    return _console(sys.stdout)


def messages_console() -> Console:
    """The console of progress and remarks, standard error."""
    return _console(sys.stderr)


def print_json(results: dict[str, Any]) -> None:
    """One JSON object on standard output. Raises ValueError for a number that JSON cannot hold."""
    print(json.dumps(results, indent=2, allow_nan=False, default=str), flush=True)


def quiet_libraries() -> None:
    """Keeps transformers' remarks and bars, and warnings, out of what people read; call before loading a model."""
    # torch's C++ side tells of a lost connection by its stack; the walk tells it in a line.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    import warnings

    from transformers.utils import logging

    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _console(stream: IO[str]) -> Console:
    """Files and pipes get a fixed width, so that a table in a log is whole; COLUMNS still rules."""
    fixed = None if stream.isatty() or "COLUMNS" in os.environ else _WIDTH_OF_FILES
    return Console(file=stream, width=fixed, highlight=False)
