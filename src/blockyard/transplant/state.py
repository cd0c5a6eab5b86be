"""What a transplant has measured so far, kept in its folder: a run that is killed goes on from there.

Measurements are kept and models are not: from the same moments and the same layers the same weights follow.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from hashlib import sha256
from typing import Any, Protocol

from torch import nn

from blockyard.compare.plan import State
from blockyard.transplant.moments import add_weights

STATE, LOCK, MOMENTS = "transplant-state.json", "transplant.lock", "moments.safetensors"


class Kept(Protocol):
    """What was measured so far, by name, wherever it is kept."""

    def known(self, *names: str) -> Any:
        """Return what was measured under a name, None for nothing yet."""

    def keep(self, value: Any, *names: str) -> Any:
        """Keep a measurement, plain data, at once; returns it."""

    def timing(self, stage: str) -> AbstractContextManager[None]:
        """Add the CPU seconds within it to a stage's."""

    def settle(self, reading: dict[str, Any], asked: dict[str, Any]) -> None:
        """Note that runs are written from now on: what was asked for stays."""


@contextmanager
def _spending(tell: Callable[[float], None]) -> Iterator[None]:
    """Tell the CPU seconds within it, however it ends."""
    began = time.process_time()
    try:
        yield
    finally:
        tell(time.process_time() - began)


class SentState:
    """What a worker knows and measures: kept by the process that asked, whom it is told at once.

    Args:
        measured: what is known, by name.
        tell: called with each message.
    """

    def __init__(self, measured: Mapping[str, Any], tell: Callable[[Mapping[str, Any]], None]) -> None:
        self._measured, self._tell = dict(measured), tell

    def known(self, *names: str) -> Any:
        return self._measured.get("/".join(names))

    def keep(self, value: Any, *names: str) -> Any:
        # As it is read back from a file: a worker goes on with what others go on with.
        self._measured["/".join(names)] = value
        self._tell({"keep": ["/".join(names), value]})
        return value

    def timing(self, stage: str) -> AbstractContextManager[None]:
        return _spending(lambda seconds: self._tell({"spent": [stage, seconds]}))

    def settle(self, reading: dict[str, Any], asked: dict[str, Any]) -> None:
        # Whoever asked has noted it.
        return


class TransplantState(State):
    """transplant-state.json: the terms, and every measurement by its name; one process at a time."""

    file, lock_file, schema, what = STATE, LOCK, "blockyard.transplant-state/1", "transplant"
    empty: Mapping[str, Any] = {"measured": {}, "seconds": {}}

    def begin(self, reading: dict[str, Any], asked: dict[str, Any]) -> None:
        """Check the terms against those that the folder was begun with.

        What was measured holds for a model and a text; which choices were asked for may change, after a budget that
        could not be met, say, until the first of them is written.

        Args:
            reading: model and text.
            asked: choices, budget and the like.

        Raises:
            InputError: naming what differs.
        """
        settled = self.data.get("asked", False)
        self.agree({**reading, **asked} if settled else reading)

    def settle(self, reading: dict[str, Any], asked: dict[str, Any]) -> None:
        """Note that runs are written from now on: what was asked for stays."""
        if not self.data.get("asked"):
            self.data |= {"asked": True, "terms": None}
            self.agree({**reading, **asked})
            self.save()

    def known(self, *names: str) -> Any:
        """Return what was measured under a name, None for nothing yet."""
        return self.data["measured"].get("/".join(names))

    def keep(self, value: Any, *names: str) -> Any:
        """Keep a measurement, plain data, at once; returns it."""
        self.data["measured"]["/".join(names)] = value
        self.save()
        return value

    def timing(self, stage: str) -> AbstractContextManager[None]:
        """Add the CPU seconds within it to a stage's, over all processes that went on with the folder."""
        return _spending(lambda seconds: self.add_seconds(stage, seconds))

    def add_seconds(self, stage: str, more: float) -> None:
        """Add CPU seconds to a stage's."""
        seconds = self.data["seconds"]
        seconds[stage] = seconds.get(stage, 0.0) + more
        self.save()


def weights_digest(model: nn.Module) -> str:
    """Return what tells a model's weights from others."""
    digest = sha256()
    add_weights(digest, model)
    return digest.hexdigest()
