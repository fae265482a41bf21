"""Which of the processes that torchrun started tells people what happens."""

import os


def is_first() -> bool:
    """Whether this process prints progress and results: alone, or the first of several."""
    return os.environ.get("RANK", "").strip() in ("", "0")
