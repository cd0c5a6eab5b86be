"""A command line as a person would type it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Any


def command_line(command: str, options: Iterable[tuple[str, Any]]) -> str:
    """`blockyard compare lm --blocks 'standard;tva+vft' --seeds 3`."""
    words = [command]
    for name, value in options:
        words += [f"--{name}", shlex.quote(word(value))]
    return " ".join(words)


def word(value: Any) -> str:
    """A value as it is typed."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(map(word, value)) or "none"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value)
