"""Something done every so many seconds beside the work: signs of life, files sent on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def every(seconds: float, act: Callable[[int], bool | None], *, at_once: bool = False) -> Iterator[None]:
    """Call `act(1)`, `act(2)`, … every so many seconds in a thread of its own, for as long as the block lasts.

    Args:
        seconds: between two calls.
        act: what is done; one that returns True is not called again. It should raise nothing.
        at_once: call it first when the block begins, and not only after so many seconds.
    """
    ended = threading.Event()

    def run() -> None:
        count = 0
        while (at_once and not count) or not ended.wait(seconds):
            count += 1
            if act(count):
                return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
