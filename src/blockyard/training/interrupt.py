"""SIGTERM and SIGINT ask a run to save and end, rather than ending it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Which signal asked the run to end, if any."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Note the signals instead of dying; a second one has its usual effect. Only a main thread can listen."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

        def note(number: int, frame: FrameType | None) -> None:
            # Noted only: a handler runs between two bytecodes, and in the middle of a save nothing else may be done.
            self.signal = number
            # Twice Ctrl-C is for whoever does not want to wait for the save.
            signal.signal(number, before[signal.Signals(number)])

        for number in before:
            signal.signal(number, note)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Interrupted(SystemExit):
    """A run ended early on request, its checkpoint saved; the exit status says by which signal.

    Args:
        number: the signal.
        message: what to tell the user.
    """

    def __init__(self, number: int, message: str) -> None:
        # As a shell says it: 143 for SIGTERM, which schedulers know for a stop that was asked for.
        super().__init__(128 + number)
        self.message = message
