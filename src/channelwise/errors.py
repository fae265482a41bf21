"""The error that people see: bad input, told in one line with what to do."""


class InputError(Exception):
    """Bad input or usage: a one-line message that says what is wrong, where, and what to do.

    The command line prints it and exits with status 2; nothing has been written when it is raised.
    """


class NumericalError(InputError):
    """A number that is not finite, met while walking the model; the message names the layer."""


class NotStreamableError(InputError):
    """A model whose weights cannot be taken part by part; it may well be loaded whole."""


class RankLostError(RuntimeError):
    """Another process of the run has stopped; `rank` is the one that stopped first, where that is known."""

    def __init__(self, who: str, rank: int | None = None) -> None:
        super().__init__(
            f"another process of this run has stopped ({who}); see its messages, "
            "then run the same command with --resume"
        )
        self.rank = rank
