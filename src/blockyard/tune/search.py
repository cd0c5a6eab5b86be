"""Optuna's part: where trials are kept, who draws the next one, who stops a poor one.

All three are made so that a search that is killed anywhere goes on as if it had not been. The journal's lock dies with
its holder. What is drawn is a function of (seed, number of the trial, trials that ended before), not of how many draws
this process has made. And whether a trial is stopped is a function of the figures reported, which are on disk before
anyone is asked.
"""

from __future__ import annotations

import fcntl
import warnings
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from blockyard.compare.keeper import versions_here
from blockyard.errors import InputError
from blockyard.files import open_without_links, plain
from blockyard.tune.settings import STARTUP, TuneConfig, hidden
from blockyard.tune.storage import OWNER, TERMS, VERSIONS, missing_search, open_storage, study_name

JOURNAL, JOURNAL_LOCK = "journal.log", "journal.lock"
NAME = "blockyard"
# Finished trials before the median is believed, and the part of the budget that every trial gets.
MEDIAN_TRIALS, MEDIAN_PART = 5, 0.25
REDUCTION = 3


def open_study(
    folder: Path, config: TuneConfig, better: str, *, mend: bool = True, terms: Mapping[str, Any] | None = None
) -> Study:
    """Return the search in a folder, begun when there is none.

    Args:
        folder: where its journal is.
        config: the terms.
        better: "lower" or "higher" figures are better.
        mend: nobody else has it open, and what a kill left half written may be removed.
        terms: of the search, which tell it from others in a database; of no matter to a folder.

    Raises:
        InputError: when the journal is damaged or cannot be written, or the database is not there; and for a search to
            be joined that it does not hold.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if config.storage is not None:
        assert terms is not None
        return _stored_study(config, config.storage, terms, better)
    path = folder / JOURNAL
    try:
        if mend:
            mend_journal(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # mypy: our lock has the two methods that Optuna calls.
            backend = JournalFileBackend(str(path), lock_obj=HeldLock(folder / JOURNAL_LOCK))  # type: ignore[arg-type]
            return optuna.create_study(
                study_name=NAME,
                storage=JournalStorage(backend),
                sampler=SeededSampler(config.sampler, config.seed),
                pruner=make_pruner(config),
                direction="minimize" if better == "lower" else "maximize",
                load_if_exists=True,
            )
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}; begin again in another --out") from error


def _stored_study(config: TuneConfig, url: str, terms: Mapping[str, Any], better: str) -> Study:
    """Return the search on these terms in a database; begun when there is none, unless it is to be joined."""
    storage, name = open_storage(url), study_name(terms)
    there = any(study.study_name == name for study in storage.get_all_studies())
    if config.join and not there:
        raise missing_search(storage, url, terms)
    study = optuna.create_study(
        study_name=name,
        storage=storage,
        sampler=SeededSampler(config.sampler, config.seed),
        pruner=make_pruner(config),
        direction="minimize" if better == "lower" else "maximize",
        load_if_exists=True,
    )
    if not there:
        study.set_user_attr(TERMS, plain(dict(terms)))
    mine, leader = versions_here(), study.user_attrs.get(VERSIONS)
    if not config.join and leader != mine:
        study.set_user_attr(VERSIONS, mine)
    elif config.join and leader is not None and leader != mine:
        said = "; ".join(f"{name} is {leader.get(name)} there and {mine[name]} here" for name in mine)
        raise InputError(f"{hidden(url)}: other versions make other runs: {said}. Install those of the leader")
    return study


def mend_journal(path: Path) -> None:
    """Drop a last line that a full disk or a power cut left half written: what is appended would join it."""
    if path.is_symlink():
        # Optuna would append through it.
        raise InputError(f"cannot write {path}: it is a symbolic link; begin again in another --out")
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with open_without_links(path, "r+b") as file:
            file.truncate(whole)


class HeldLock:
    """A lock that the operating system takes back when its holder dies; Optuna's own must be waited for, then."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def acquire(self) -> bool:
        file = open_without_links(self._path, "a")
        fcntl.flock(file, fcntl.LOCK_EX)
        self._file = file
        return True

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class SeededSampler(BaseSampler):
    """Optuna's samplers with a random state that is a function of the trial (and the option), not of the process.

    Args:
        kind: "tpe" or "random".
        seed: seed of the search.
    """

    def __init__(self, kind: str, seed: int) -> None:
        self._kind, self._seed = kind, seed
        self._inner = self._make(-1, "")

    def _make(self, number: int, name: str) -> BaseSampler:
        seed = int.from_bytes(sha256(f"{self._seed}/{number}/{name}".encode()).digest()[:4], "big")
        if self._kind == "random":
            return RandomSampler(seed=seed)
        with warnings.catch_warnings():
            # Grouping options that occur together is called experimental; it is what conditional options need.
            warnings.simplefilter("ignore")
            return TPESampler(n_startup_trials=STARTUP, multivariate=True, group=True, constant_liar=True, seed=seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        self._inner = self._make(trial.number, "")
        return self._inner.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._inner.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        inner = self._make(trial.number, param_name)
        return inner.sample_independent(study, trial, param_name, param_distribution)


def make_pruner(config: TuneConfig) -> BasePruner:
    """Return the pruner of a name; figures are reported at parts 1, 2, … of `evaluations` of the budget."""
    if config.pruner == "median":
        warm = round(MEDIAN_PART * config.evaluations)
        return MedianPruner(n_startup_trials=MEDIAN_TRIALS, n_warmup_steps=max(1, warm))
    if config.pruner == "hyperband":
        return Hyperband(config.evaluations)
    return NopPruner()


class Hyperband(BasePruner):
    """Hyperband (arXiv 1603.06560) by asynchronous halving (arXiv 1810.05934): at each rung of its bracket a trial goes
    on if it is among the best third of those that came so far.

    Optuna's own writes a rung into the storage while it decides; a search killed there would decide otherwise when it
    goes on. Here a rung is read off the figures reported.

    Args:
        most: parts of a whole run.
    """

    def __init__(self, most: int) -> None:
        brackets = 1
        while REDUCTION**brackets <= most:
            brackets += 1
        self._rungs = [[REDUCTION**i for i in range(first, brackets)] for first in range(brackets)]
        # As in the paper, brackets that stop earlier hold more trials.
        shares = [-(-brackets * REDUCTION ** (brackets - 1 - b) // (brackets - b)) for b in range(brackets)]
        self._brackets = [b for b, share in enumerate(shares) for _ in range(share)]

    def bracket(self, number: int) -> int:
        """Return the bracket of a trial, spread evenly over the numbers."""
        digest = sha256(f"{NAME}/{number}".encode()).digest()
        return self._brackets[int.from_bytes(digest[:4], "big") % len(self._brackets)]

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        if trial.last_step is None:
            return False
        bracket = self.bracket(trial.number)
        sign = 1 if study.direction == StudyDirection.MINIMIZE else -1
        others = [t for t in study.get_trials(deepcopy=False) if self.bracket(t.number) == bracket]
        for rung in self._rungs[bracket]:
            mine = _figure_at(trial, rung)
            if mine is None or mine[0] != trial.last_step:
                # Not reached, or passed before.
                continue
            if np.isnan(mine[1]):
                return True
            figures = [f[1] for t in others if t.number != trial.number and (f := _figure_at(t, rung))]
            ranked = sorted(sign * value for value in [*figures, mine[1]] if not np.isnan(value))
            if sign * mine[1] > ranked[max(0, len(ranked) // REDUCTION - 1)]:
                return True
        return False


def _figure_at(trial: FrozenTrial, rung: int) -> tuple[int, float] | None:
    """Return the first figure at a rung or behind it, with its part; runs of few steps pass over parts."""
    steps = [step for step in trial.intermediate_values if step >= rung]
    return (min(steps), trial.intermediate_values[min(steps)]) if steps else None


def unfinished(study: Study, owner: str | None = None) -> list[int]:
    """Return numbers of the trials that were cut off; of one owner's, where a search has several."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return [t.number for t in running if owner is None or t.user_attrs.get(OWNER) == owner]


def ended_trials(study: Study) -> Sequence[FrozenTrial]:
    """Return the trials that are over, by number."""
    return [t for t in study.get_trials(deepcopy=False) if t.state.is_finished()]
