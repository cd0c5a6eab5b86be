"""Joins a search that another machine leads: makes trials of it until none is offered any more."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from blockyard.training.folder import LOCK, locked_folder
from blockyard.training.interrupt import StopRequest
from blockyard.tune.plan import SearchSpec
from blockyard.tune.search import open_study, unfinished
from blockyard.tune.start import DefaultRun, terms_of
from blockyard.tune.storage import OWNER, owner_of, reaching
from blockyard.tune.trials import DRAWN, STATUS, Search

JOINED = "joined"


def join(start: DefaultRun, out: Path, keep: Callable[[], None]) -> int:
    """Make trials of a search until there are no more; returns how many were ended here.

    Args:
        start: what is known before, on the terms of the search.
        out: folder of the trials' runs; that of the leader, where both machines see it, or one's own.
        keep: called when the search has been found.

    Raises:
        InputError: when the database holds no search on these terms, or this machine has joined it already.
        Interrupted: after SIGTERM or SIGINT, when the run in training has been saved.
    """
    owner = owner_of(out, joined=True)
    study = open_study(out, start.config, start.quality.better, terms=terms_of(start))
    spec = SearchSpec(start.task, start.quality, start.config, start.space, start.fixed, start.default, out)
    # A folder of its own: what a killed leader left half written is the leader's to sweep.
    place = out / JOINED / socket.gethostname()
    with closing(locked_folder(place, LOCK, str(place), "process that joined the search")):
        keep()
        told: set[int] = set()

        def watch() -> None:
            for trial in study.get_trials(deepcopy=False):
                mine = trial.user_attrs.get(OWNER) == owner
                if mine and trial.state.is_finished() and trial.number not in told:
                    told.add(trial.number)
                    value = "" if trial.value is None else f" {start.quality.metric} {trial.value:.4f}"
                    settings = ", ".join(f"{name}={value}" for name, value in trial.user_attrs.get(DRAWN, {}).items())
                    status = trial.user_attrs.get(STATUS, "failed")
                    print(f"trial {trial.number}: {status}{value} ({settings})", file=sys.stderr)

        with StopRequest().listening() as stop, reaching(start.config.storage):
            Search(spec, study, start.cache, stop, watch, owner).run(unfinished(study, owner))
        print("no trial is offered any more; the machine that leads the search makes the report", file=sys.stderr)
        return len(told)
