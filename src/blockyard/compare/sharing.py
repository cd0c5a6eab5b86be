"""Runs of a comparison that several processes make together, on storage that all of them see (`compare --join`).

One of them leads: it holds the comparison's folder, plans, offers runs in `offer.json`, and makes the report. Whoever
joins takes runs by the locks of their folders, as everybody who trains does: a lock goes with its process, or with its
machine when its lease on the storage runs out, and the run goes on elsewhere from its last checkpoint. In `joined` each
holds a file of its own; one more beside it says that it has nothing to do, and then others save a run and let it go.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from blockyard.compare.budget import Budget
from blockyard.compare.jobs import Job, described
from blockyard.compare.keeper import versions_here
from blockyard.compare.plan import LOCK
from blockyard.errors import InputError
from blockyard.files import make_folder, open_without_links, parse_json, write_atomically
from blockyard.machine.beats import every
from blockyard.training.folder import held

OFFER, JOINED, BEAT = "offer.json", "joined", "leader.beat"
SCHEMA = "blockyard.offer/1"
PRESENT, WAITING = ".here", ".waiting"
# Nothing is lost by a fifth of a second, and a lock costs a system call to look at.
POLL_SECONDS = 0.2
# How long a worker whose starter was killed may take to save and stop: a slice of steps and an evaluation.
ORPHAN_SECONDS = 120.0
# Between two runs that are let go: whoever waits needs a moment to take one, more on a network.
GIVE_SECONDS = 5.0
# Between two signs of the leader's life, by which locks are told that do not hold between machines.
BEAT_SECONDS = 5.0


class Sharing:
    """Where the processes of one comparison meet.

    Args:
        out: the comparison's folder.
    """

    def __init__(self, out: Path) -> None:
        self.out, self._given = out, 0.0

    # The leader's part.

    @contextmanager
    def leading(self) -> Iterator[None]:
        """Say every now and then, within it, that somebody leads; what was offered before is offered no more."""
        folder = self.out / JOINED
        (self.out / OFFER).unlink(missing_ok=True)
        self._sweep()

        def beat(count: int) -> None:
            # A disk that is full for a moment: the work itself will say so.
            with suppress(InputError, OSError):
                if folder.is_dir():
                    write_atomically(folder / BEAT, secrets.token_hex(8))

        try:
            with every(BEAT_SECONDS, beat, at_once=True):
                yield
        finally:
            (folder / BEAT).unlink(missing_ok=True)
            with suppress(OSError):
                # Unless somebody is still there.
                folder.rmdir()

    def offer(self, jobs: Sequence[Job], budget: Budget) -> None:
        """Offer runs to whoever joins; those that were offered before are offered no more."""
        self._write({"budget": budget.as_request(), "jobs": [described(job, self.out) for job in jobs]})

    def finish(self) -> None:
        """Let those who joined go: no more runs are offered."""
        self._write({"done": True})

    def _write(self, what: Mapping[str, Any]) -> None:
        found = {"schema": SCHEMA, "versions": versions_here(), **what}
        write_atomically(self.out / OFFER, json.dumps(found, default=list))

    def _sweep(self) -> None:
        """Remove the files of those who were killed."""
        for path in (self.out / JOINED).glob(f"*{PRESENT}"):
            if not held(path):
                for gone in (path, path.with_suffix(WAITING)):
                    gone.unlink(missing_ok=True)

    # Everybody's part.

    def joined(self) -> list[str]:
        """Return the names of the others who are there."""
        return [path.stem for path in (self.out / JOINED).glob(f"*{PRESENT}") if held(path)]

    def to_give(self, many: int) -> int:
        """Return how many of so many runs in training are to be let go, for others who have none; never all."""
        now = time.monotonic()
        if many < 2 or now - self._given < GIVE_SECONDS:
            return 0
        folder = self.out / JOINED
        waiting = [path for path in folder.glob(f"*{WAITING}") if held(path.with_suffix(PRESENT))]
        if waiting:
            self._given = now
        return min(len(waiting), many - 1)

    # The part of those who join.

    @contextmanager
    def joining(self) -> Iterator[Path]:
        """Be one of those who joined, within it; yields the file whose being there says that one waits for a run."""
        folder = self.out / JOINED
        make_folder(folder)
        # By chance, too: names of machines and numbers of processes repeat in containers.
        path = folder / f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}{PRESENT}"
        with _locked(path):
            waiting = path.with_suffix(WAITING)
            try:
                yield waiting
            finally:
                for mine in (waiting, path):
                    mine.unlink(missing_ok=True)

    def read_offer(self) -> dict[str, Any] | None:
        """Return what is offered; None where nothing is yet.

        Raises:
            InputError: for an offer of other versions, whose runs would be other runs.
        """
        try:
            found = parse_json((self.out / OFFER).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise InputError(f"{self.out / OFFER} cannot be read: {error}") from error
        if not isinstance(found, dict) or found.get("schema") != SCHEMA:
            raise InputError(f"{self.out / OFFER} is no offer of this version ({SCHEMA})")
        for package, mine in versions_here().items():
            theirs = (found.get("versions") or {}).get(package)
            if mine != theirs:
                raise InputError(f"join: the leader has {package} {theirs}, and {mine} is here: its runs would differ")
        return found

    def is_led(self) -> bool:
        """Return whether somebody leads."""
        return held(self.out / LOCK)

    def check_locks(self) -> None:
        """Refuse storage whose locks do not hold between machines: two would train in one folder.

        Raises:
            InputError: when somebody leads, whose lock is not seen here.
        """
        beat, seen = self.out / JOINED / BEAT, ""
        until = time.monotonic() + 2.5 * BEAT_SECONDS
        while not self.is_led() and time.monotonic() < until:
            now = _content(beat)
            # Of a leader that was killed there may be one, which does not change.
            if now and seen and now != seen and not self.is_led():
                raise InputError(
                    f"join: somebody leads in {self.out} whose lock is not seen here: locks of this storage do not "
                    "hold between machines (NFSv4 has such, and Lustre with `flock`)"
                )
            seen = seen or now
            time.sleep(POLL_SECONDS)


@contextmanager
def _locked(path: Path) -> Iterator[IO[str]]:
    try:
        file = open_without_links(path, "a+")
    except OSError as error:
        raise InputError(f"cannot write to {path.parent}: {error.strerror or error}") from error
    with file:
        # Waits: whoever looks at it may have it for a moment.
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _content(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
