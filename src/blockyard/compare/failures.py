"""What goes wrong with one choice alone: told apart from what concerns the whole, and kept for its author.

A comparison or a search runs blocks that somebody else wrote. One that raises ends its own run and no other.
"""

from __future__ import annotations

import traceback
from pathlib import Path

from blockyard.errors import InputError
from blockyard.files import write_atomically

TRACEBACK = "error.txt"


def is_of_the_machine(error: BaseException) -> bool:
    """Return whether an error is not one choice's: a full disk, a folder in use, a signal."""
    # A full disk meets every run that follows, so going on would only fill the report with it.
    if not isinstance(error, Exception) or isinstance(error, OSError):
        return True
    return isinstance(error, InputError) and isinstance(error.__cause__, OSError)


def keep_failure(error: Exception, folder: Path | None = None) -> str:
    """Word an error in one line, and keep its traceback in the run's folder.

    A plain refusal (`InputError`) has said what it has to say and leaves no traceback.
    """
    if isinstance(error, InputError):
        return " ".join(str(error).split())
    if folder is not None:
        write_atomically(folder / TRACEBACK, "".join(traceback.format_exception(error)))
    # The first line fits a table; what follows is in error.txt.
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
