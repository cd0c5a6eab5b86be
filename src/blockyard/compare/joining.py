"""Joins a comparison that another process leads in the same folder: trains runs of it until none is offered."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from blockyard.compare.budget import Budget
from blockyard.compare.compare import checked
from blockyard.compare.jobs import job_from, lines_of
from blockyard.compare.live import Board, make_board
from blockyard.compare.plan import STATE, differing_terms, terms_of
from blockyard.compare.processes import STOPPED
from blockyard.compare.results import read_result
from blockyard.compare.settings import CompareConfig, Groups
from blockyard.compare.sharing import Sharing
from blockyard.compare.turns import train_in_turns
from blockyard.errors import InputError
from blockyard.files import check_writable, parse_json
from blockyard.machine.launch import world_size
from blockyard.machine.memory import forcing
from blockyard.mirror import is_url
from blockyard.tasks.run import DataCache
from blockyard.training.folder import LOCK, held
from blockyard.training.interrupt import Interrupted, StopRequest

# How long a leader may take to begin: an array of jobs starts in any order.
LEADER_SECONDS = 600.0
LOOK_SECONDS = 1.0


def join_comparison(
    task: str,
    config: CompareConfig,
    groups: Groups | None = None,
    out: str | Path = "comparison",
    *,
    show: bool = True,
    force: bool = False,
) -> int:
    """Train runs of a comparison that another process leads in the same folder, until none is offered any more.

    Any number of processes may join, on any machine that sees the folder and takes its locks. The leader need not
    outlive them: what was offered is trained, and the same command without `join` goes on with the rest.

    Args:
        task: the kind of task, by name.
        config: the terms, as the leader has them.
        groups: shared options, likewise.
        out: the comparison's folder.
        show: show progress on standard error.
        force: train also what by its estimate does not fit into memory.

    Returns: how many runs were ended here.

    Raises:
        InputError: when nobody leads, or on other terms, with other data or other versions.
        Interrupted: after SIGTERM or SIGINT, when the run in training has been saved.
    """
    if world_size() > 1:
        raise InputError("compare runs in one process; start it without torchrun")
    if is_url(out):
        raise InputError("join: a URL has no locks; join on storage that all see under a path, or use --engine ray")
    out, groups = Path(out), dict(groups or {})
    with forcing(force):
        base, _ = checked(task, config, groups)
        check_writable(out, folder=True)
        if base.train.threads:
            torch.set_num_threads(base.train.threads)
        board = make_board(show, base.kind.unit)
        try:
            with StopRequest().listening() as stop:
                joined = _Joined(Sharing(out), board, stop)
                # What cannot be read is not to be told after a wait.
                data = base.kind.load_data(base.data, base.model)
                joined.wait_for_leader()
                _agree(out, terms_of(config, base, data))
                return joined.work()
        finally:
            board.close()


class _Joined:
    """A process that has joined.

    Args:
        sharing: where it meets the others.
        board: shows what it trains.
        stop: asks to save and end.
    """

    def __init__(self, sharing: Sharing, board: Board, stop: StopRequest) -> None:
        self.sharing, self.board, self.stop = sharing, board, stop
        self.cache = DataCache()

    def wait_for_leader(self) -> None:
        """Wait until something is offered."""
        until, told = time.monotonic() + LEADER_SECONDS, False
        while self.sharing.read_offer() is None:
            if not self.sharing.is_led() and time.monotonic() > until:
                raise InputError(f"join: nobody leads a comparison in {self.sharing.out}; begin it without --join")
            if not told:
                self.board.say(f"waiting for the comparison in {self.sharing.out} to offer runs")
                told = True
            self._rest()

    def work(self) -> int:
        """Take runs until none is offered any more; returns how many were ended here."""
        count = 0
        with self.sharing.joining() as waiting:
            self.sharing.check_locks()
            while True:
                offer = self.sharing.read_offer()
                if offer is not None and offer.get("done"):
                    self.board.say("no run is offered any more; the leader makes the report")
                    return count
                made, left = (0, False) if offer is None else self._take(offer, waiting)
                count += made
                if made:
                    continue
                if not left and not self.sharing.is_led():
                    # Looked at again: the leader may have ended, or offered more, in this moment.
                    latest = self.sharing.read_offer()
                    if latest == offer:
                        self.board.say("no run is left, and nobody leads any more; the command without --join goes on")
                        return count
                    continue
                waiting.touch()
                self._rest()

    def _take(self, offer: dict[str, Any], waiting: Path) -> tuple[int, bool]:
        """Train the first run that nobody holds; returns how many were ended, and whether any is left."""
        out, left = self.sharing.out, False
        for found in offer["jobs"]:
            folder = out / found["folder"]
            if read_result(folder) is not None:
                continue
            left = True
            if held(folder / LOCK):
                continue
            waiting.unlink(missing_ok=True)
            job = job_from(found, self.cache, out)
            turns = train_in_turns(
                [job], Budget(**offer["budget"]), self.board, lines_of({job.seed: [job]}), self.stop, self.sharing
            )
            made = len(list(turns))
            # None where somebody else was faster: the next one, then.
            if made:
                return made, True
        return 0, left

    def _rest(self) -> None:
        if self.stop.signal is not None:
            raise Interrupted(self.stop.signal, STOPPED)
        time.sleep(LOOK_SECONDS)


def _agree(out: Path, terms: dict[str, Any]) -> None:
    """Refuse terms that are not the leader's."""
    try:
        before = parse_json((out / STATE).read_text(encoding="utf-8"))["terms"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{out / STATE} cannot be read ({error}); begin the comparison without --join") from error
    different = differing_terms(before, terms)
    if different:
        raise InputError(f"join: the comparison in {out} is on other terms: {'; '.join(different)}")
