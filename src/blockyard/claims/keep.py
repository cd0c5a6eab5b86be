"""Keeps what was timed and trained in a file, so that ten minutes of measuring survive an interruption.

What is kept are raw measurements (seconds, losses), never verdicts: those are worked out from them again each time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from blockyard.errors import InputError
from blockyard.files import parse_json, write_atomically

SCHEMA = "blockyard.claims-kept/1"


class MeasurementStore:
    """Measurements by name, in memory or also in a file.

    Args:
        path: the file, made when something is first kept; None keeps in memory only.
        machine: processor and versions in words: a file of another machine is refused.

    Raises:
        InputError: when the file cannot be read, is something else, or is of another machine.
    """

    def __init__(self, path: str | Path | None = None, machine: str = "") -> None:
        self.path, self.machine = Path(path) if path is not None else None, machine
        self.values: dict[str, dict[str, float]] = {}
        self._claim, self._number = "", 0
        if self.path is None or not self.path.exists():
            return
        try:
            found = parse_json(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path} cannot be read ({error}); remove it to measure anew") from error
        if not isinstance(found, dict) or found.get("schema") != SCHEMA:
            raise InputError(f"{self.path} holds no kept measurements ({SCHEMA}); name another file")
        if not isinstance(found.get("machine"), str) or not isinstance(found.get("values"), dict):
            raise InputError(f"{self.path} is damaged; remove it to measure anew")
        if found["machine"] != machine:
            raise InputError(f"{self.path} was measured on {found['machine']}, this is {machine}; name another file")
        self.values = found["values"]

    def start(self, claim: str) -> None:
        """Note for which claim is measured from now on."""
        self._claim, self._number = claim, 0

    def recall(self, compute: Callable[[], Mapping[str, float]], name: str = "") -> dict[str, float]:
        """Return what is kept under a name, or else what `compute` gives, which is then kept.

        Args:
            compute: measures.
            name: of something that several claims share; "" names it by the claim and the order of its measurements.
        """
        if not name:
            self._number += 1
            name = f"{self._claim} {self._number}"
        if name not in self.values:
            self.values[name] = dict(compute())
            self._write()
        return dict(self.values[name])

    def _write(self) -> None:
        if self.path is None:
            return
        told = {"schema": SCHEMA, "machine": self.machine, "values": self.values}
        # Infinity is what a diverged run ends with; Python reads it back.
        write_atomically(self.path, json.dumps(told, indent=1) + "\n")


_current: ContextVar[MeasurementStore | None] = ContextVar("kept", default=None)


@contextmanager
def keeping_in(kept: MeasurementStore) -> Iterator[MeasurementStore]:
    """Keep what is measured inside in `kept`."""
    token = _current.set(kept)
    try:
        yield kept
    finally:
        _current.reset(token)


def recall(compute: Callable[[], Mapping[str, float]], name: str = "") -> dict[str, float]:
    """Return `MeasurementStore.recall` where something is kept; else simply measures."""
    kept = _current.get()
    return dict(compute()) if kept is None else kept.recall(compute, name)
