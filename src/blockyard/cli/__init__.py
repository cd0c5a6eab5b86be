"""The `blockyard` command: subcommands in `commands/`, their options read from the classes that take them.

Nothing here imports torch until a subcommand needs it, so that the overview stays instant.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status.

    Args:
        argv: the words after the program's name; None = those of this process.

    Returns:
        0 when all went well, 1 when a check failed, 2 for bad input (one line `error: ...` on stderr),
        130 after Ctrl-C. A fault of the program itself propagates with its traceback (status 1).
    """
    from blockyard.cli.app import run_words

    return run_words(argv)
