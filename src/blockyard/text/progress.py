"""What a person sees while a large text is read: a line now and then on standard error, none for a small text.

Reading, learning a tokenizer and encoding come before the first step and may take minutes; who sees nothing thinks that
the program hangs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

Counted = Callable[[int, int], None]
"""Called with (how much is done, out of how much)."""
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and out of how much (0 where nobody knows yet)."""

Unit = tuple[str, int]
"""A unit's name, and how many of what is counted make one."""
BYTES: Unit = ("MB", 1_000_000)
UNITS: Mapping[str, Unit] = {"learning merges": ("tokens", 1)}


class ReadingLines:
    """Lines like `encoding: 412 of 1,000 MB, 0:52 left`, the first after some seconds.

    Args:
        units: of what is being done.
        unit: of whatever is not among them.
        seconds: between two lines, and before the first.
        out: where they are written; none means standard error.
    """

    def __init__(
        self,
        units: Mapping[str, Unit] = UNITS,
        unit: Unit = BYTES,
        *,
        seconds: float = 5.0,
        out: TextIO | None = None,
    ) -> None:
        self._units, self._unit, self._seconds, self._out = units, unit, seconds, out
        self._what = ""
        self._began = self._shown = time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Tell how far it is; shown only when the last line is some seconds old."""
        now = time.monotonic()
        if what != self._what:
            self._what, self._began = what, now
        if now - self._shown < self._seconds:
            return
        self._shown = now
        unit, size = self._units.get(what, self._unit)
        line = f"{what}: {done // size:,} {unit}"
        if total:
            left = round((now - self._began) * (total - done) / max(done, 1))
            line = f"{what}: {done // size:,} of {total // size:,} {unit}, {left // 60}:{left % 60:02d} left"
        print(line, file=self._out or sys.stderr, flush=True)
