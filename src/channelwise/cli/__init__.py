"""The command line: `main` here, one small file per verb. Importing this costs nothing: see `app` for the verbs."""

import sys


def main() -> None:
    """Runs the program on sys.argv and exits: 0 done, 2 bad input or usage, 130 interrupted, 1 anything else."""
    from channelwise.cli import process

    sys.exit(process.run(sys.argv[1:]))
