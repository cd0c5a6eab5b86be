"""A search that several machines make together, kept in a database (`--storage URL`).

One of them leads: it offers the trials, and makes the finals and the report. Others join (`--join`) and make trials of
it. A trial is taken by changing its state from offered to running, which a database does once, whoever asks at the same
time. Whoever makes it says so every now and then; one that nobody has heard of for a while is made by the leader.

Only what changes is compared, not the clocks of two machines.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from blockyard.errors import InputError
from blockyard.files import plain
from blockyard.machine.beats import every
from blockyard.tune.settings import hidden

# Of a trial: who makes it, and a number that grows while it does.
OWNER, BEAT = "owner", "beat"
# Of a study: the terms of the search, how many trials its leader wants, and with what it makes them.
TERMS, WANTED, VERSIONS = "terms", "wanted", "versions"
BEAT_SECONDS, GRACE_SECONDS = 15.0, 90.0
# A database in one file is written by one at a time; the others wait so long.
BUSY_SECONDS = 60


def open_storage(url: str) -> BaseStorage:
    """Return the database of a URL, its tables made where there are none.

    Raises:
        InputError: when it cannot be reached, or what speaks to it is not installed.
    """
    # Optuna stands on it.
    from sqlalchemy.exc import SQLAlchemyError

    in_a_file = url.startswith("sqlite")
    try:
        found = RDBStorage(url, engine_kwargs={"connect_args": {"timeout": BUSY_SECONDS}} if in_a_file else {})
        if in_a_file:
            _write_in_turn(found)
        return found
    except (SQLAlchemyError, ImportError, ValueError, RuntimeError) as error:
        # Errors of a driver quote what it was given.
        reason = hidden(" ".join(str(error).split()))[:200]
        raise InputError(f"storage={hidden(url)!r} cannot be opened: {reason}") from error


@contextmanager
def reaching(url: str | None) -> Iterator[None]:
    """Tell what goes wrong with the database apart from what goes wrong with a trial; nothing where there is none.

    Raises:
        InputError: caused by an OSError, as what concerns the machine is: the trial is as good as it was.
    """
    if url is None:
        yield
        return
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        reason = hidden(" ".join(str(error.__cause__ or error).split()))[:200]
        said = f"the database {hidden(url)} does not answer: {reason}; the same command continues when it does"
        raise InputError(said) from OSError(reason)


def _write_in_turn(storage: RDBStorage) -> None:
    """Let every transaction of a database in one file hold it from its beginning.

    Such a database knows no row that is held for its reader (SELECT … FOR UPDATE), which is how Optuna lets a trial be
    taken once: two readers would both find it offered.
    """
    from sqlalchemy import event

    def as_told(connection: Any, record: Any) -> None:
        # Else the driver begins transactions by itself, and with the first write only.
        connection.isolation_level = None

    def hold(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    # Connections from before this know nothing of it.
    storage.engine.dispose()
    event.listen(storage.engine, "connect", as_told)
    event.listen(storage.engine, "begin", hold)


def study_name(terms: Mapping[str, Any]) -> str:
    """Return the name under which a database keeps the search on these terms."""
    return f"blockyard-{sha256(json.dumps(plain(dict(terms)), sort_keys=True).encode()).hexdigest()[:16]}"


def missing_search(storage: BaseStorage, url: str, terms: Mapping[str, Any]) -> InputError:
    """Return the refusal to join a search that a database does not hold, with the nearest one that it holds."""
    wanted, found = plain(dict(terms)), []
    for study in storage.get_all_studies():
        other = study.user_attrs.get(TERMS)
        if isinstance(other, dict):
            found.append(
                [f"{k} is {other.get(k)!r} there" for k in {**other, **wanted} if other.get(k) != wanted.get(k)]
            )
    hint = f"; the nearest one differs: {'; '.join(min(found, key=len)[:3])}" if found else "; it holds none"
    return InputError(
        f"{hidden(url)} holds no search on these terms{hint}. Begin it without --join, with the same words"
    )


def owner_of(out: Path, *, joined: bool) -> str:
    """Return who makes trials here; the same again after a kill."""
    return f"{socket.gethostname()}:{out.absolute()}{' (joined)' if joined else ''}"


def offer(study: Study, trials: int) -> None:
    """Offer trials to whoever takes them, until there are so many in all; of more that were offered, none is taken."""
    study.set_user_attr(WANTED, trials)
    for _ in range(trials - len(study.get_trials(deepcopy=False))):
        study.add_trial(create_trial(state=TrialState.WAITING))


def claim(study: Study, owner: str) -> Trial | None:
    """Take the first trial that is offered, drawn by the search's sampler; None when all are taken."""
    wanted = study.user_attrs.get(WANTED)
    for frozen in study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        if wanted is not None and frozen.number >= wanted:
            break
        # Another one was faster; it may have ended the trial, too.
        with suppress(optuna.exceptions.UpdateFinishedTrialError):
            if study._storage.set_trial_state_values(frozen._trial_id, TrialState.RUNNING):
                trial = Trial(study, frozen._trial_id)
                trial.set_user_attr(OWNER, owner)
                return trial
    return None


def begun(study: Study) -> Sequence[FrozenTrial]:
    """Return the trials that somebody has taken, by number."""
    return [t for t in study.get_trials(deepcopy=False) if t.state != TrialState.WAITING]


def is_mine(study: Study, number: int, owner: str) -> bool:
    """Return whether a trial is still to be made by this owner."""
    found = study.get_trials(deepcopy=False)[number]
    return found.state == TrialState.RUNNING and found.user_attrs.get(OWNER) == owner


def take_over(study: Study, number: int, owner: str) -> None:
    """Make a trial that its owner was lost with one's own."""
    trial = study.get_trials(deepcopy=False)[number]
    # It may end in this moment after all.
    with suppress(optuna.exceptions.UpdateFinishedTrialError):
        study._storage.set_trial_user_attr(trial._trial_id, OWNER, owner)


@contextmanager
def beating(study: Study, trial: Trial) -> Iterator[None]:
    """Say every now and then that a trial is being made."""

    def beat(count: int) -> None:
        # A database that is busy, or gone: the trial is what matters, and whoever needs it will say so.
        with suppress(Exception):
            study._storage.set_trial_user_attr(trial._trial_id, BEAT, f"{time.time():.0f}/{count}")

    with every(BEAT_SECONDS, beat):
        yield


class Others:
    """The trials that others make, watched for those that nobody makes any more.

    Args:
        study: the search.
        owner: who watches.
    """

    def __init__(self, study: Study, owner: str) -> None:
        self._study, self._owner = study, owner
        self._heard: dict[int, tuple[Any, float]] = {}

    def running(self) -> list[FrozenTrial]:
        """Return what others are at."""
        found = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return [t for t in found if t.user_attrs.get(OWNER) != self._owner]

    def lost(self) -> list[int]:
        """Return numbers of the trials of which nothing has been heard for too long, as far as asked often enough."""
        now, lost = time.monotonic(), []
        for trial in self.running():
            sign = (trial.user_attrs.get(BEAT), trial.user_attrs.get(OWNER), len(trial.intermediate_values))
            before = self._heard.get(trial.number)
            if before is None or before[0] != sign:
                self._heard[trial.number] = (sign, now)
            elif now - before[1] > GRACE_SECONDS:
                lost.append(trial.number)
        return lost
