"""One run of the program: from arguments to exit status; errors in one line, tracebacks only with --debug."""

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

DONE, FAILED, BAD_INPUT = 0, 1, 2
INTERRUPTED = 128
"""Plus the signal's number, as shells count: 130 for Ctrl-C."""

_REPEAT_SECONDS = 1.0
_TELLING_SECONDS = 3.0

SHARED_VERBS = ("quantize",)
"""What several processes, started by torchrun, do together."""


def run(arguments: Sequence[str]) -> int:
    """Runs the verb that the arguments name and returns the exit status."""
    debug = "--debug" in arguments
    try:
        with _patient_interrupts():
            return _run_verb(list(arguments) or ["--help"])
    except KeyboardInterrupt as interrupt:
        number = interrupt.args[0] if interrupt.args else signal.SIGINT
        return _say(
            "; ".join(["interrupted", *getattr(interrupt, "__notes__", ["no output was written"])]),
            INTERRUPTED + number,
        )
    except BrokenPipeError:
        # The reader has gone (`| head`); without this, Python complains once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _failure(error, debug)


def _run_verb(arguments: list[str]) -> int:
    """Parses and calls, without typer's own handling of errors, which prints boxes and tracebacks."""
    import typer

    from channelwise.cli.app import app

    command = typer.main.get_command(app)
    verb = next((argument for argument in arguments if not argument.startswith("-")), "")
    if verb in getattr(command, "commands", {}) and verb not in SHARED_VERBS and "--help" not in arguments:
        _check_alone(verb)
    try:
        with command.make_context("channelwise", arguments) as context:
            command.invoke(context)
    except typer.Exit as finished:
        return int(finished.exit_code)
    return DONE


def _check_alone(verb: str) -> None:
    """Raises InputError if several processes were started to run this verb, which would all do the same."""
    from channelwise.cli.ranks import is_first
    from channelwise.engine.launch import is_launched
    from channelwise.errors import InputError

    if not is_launched(os.environ):
        return
    size = os.environ.get("WORLD_SIZE", "").strip()
    error = InputError(
        f"{verb} runs in one process, but the environment has WORLD_SIZE={size}: start it without torchrun"
    )
    if not is_first():
        error.quiet = True  # type: ignore[attr-defined]
        # Others wait for the first one to tell, because torchrun stops all when one has ended.
        time.sleep(_TELLING_SECONDS)
    raise error


def _failure(error: Exception, debug: bool) -> int:
    """Prints one line for an error and returns its exit status."""
    import typer

    from channelwise.errors import InputError, RankLostError

    usage_error = typer.BadParameter.__bases__[0]  # typer exports no other name for it
    if isinstance(error, InputError):
        return BAD_INPUT if getattr(error, "quiet", False) else _refuse(f"error: {error}")
    if isinstance(error, usage_error):
        context = getattr(error, "ctx", None)
        verb = context.command_path if context else "channelwise"
        message = error.format_message()  # type: ignore[attr-defined]
        return _refuse(f"error: {message.rstrip('.')}; see `{verb} --help`")
    if isinstance(error, RankLostError):
        return _say(f"error: {error}", FAILED)
    hint = "" if debug else " (--debug shows where)"
    return _say(f"error: {type(error).__name__}: {error}{hint}", FAILED)


def _refuse(message: str) -> int:
    """Tells what is wrong with the input; of several processes the first one, unless another alone finds it wrong."""
    from channelwise.cli.ranks import is_first

    if not is_first():
        # torchrun stops all when one has ended, so what the first one tells, too, is told once.
        time.sleep(_TELLING_SECONDS)
        message = f"rank {os.environ['RANK'].strip()}: {message}"
    return _say(message, BAD_INPUT)


def _say(message: str, status: int) -> int:
    """One line on standard error, whatever the message; returns the status."""
    # In one piece, for the lines of several processes.
    sys.stderr.write(" ".join(message.split()) + "\n")
    return status


@contextlib.contextmanager
def _patient_interrupts() -> Iterator[None]:
    """Ctrl-C and SIGTERM raise KeyboardInterrupt; repeats within a second do not disturb the cleaning up."""
    last = -_REPEAT_SECONDS
    owner = os.getpid()

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal last
        if os.getpid() != owner:
            # A forked child (a library's pool of workers) ends as it would without us: whoever waits for it hangs else.
            signal.signal(number, untouched[number])
            os.kill(os.getpid(), number)
            return
        now = time.monotonic()
        repeated, last = now - last < _REPEAT_SECONDS, now
        if not repeated:
            raise KeyboardInterrupt(number)

    # Others are ignored (nohup) or handled by whoever called us.
    untouched: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    ours = [number for number, handler in untouched.items() if signal.getsignal(number) is handler]
    for number in ours:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, untouched[number])
