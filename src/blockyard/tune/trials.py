"""The trials of a search, as one process makes them: draw, train, judge, tell."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from blockyard.compare.failures import is_of_the_machine, keep_failure
from blockyard.compare.processes import STOPPED
from blockyard.errors import InputError
from blockyard.files import open_without_links, plain
from blockyard.tasks.kind import Quality, Run
from blockyard.tasks.settings import resolve
from blockyard.training.folder import CHECKPOINTS
from blockyard.training.interrupt import Interrupted, StopRequest
from blockyard.tune.budgeted import (
    Ended,
    Plan,
    Shelf,
    make_plan,
    planned_run,
    train_to_budget,
)
from blockyard.tune.search import ended as ended_trials
from blockyard.tune.settings import TuneConfig
from blockyard.tune.space import Space

TRIALS, CLAIM = "trials", "claim.lock"
# What a trial notes about itself in the journal.
DRAWN, STATUS, NOTE, PLAN, SAME_AS, RESULT = "drawn", "status", "note", "plan", "same_as", "result"


@dataclass(frozen=True)
class Search:
    """A search in a folder.

    Args:
        folder: where it is.
        space: what is searched.
        fixed: option groups that all trials share.
        config: the terms.
        study: Optuna's part.
        quality: the figure that is searched for the best of.
        shelf: the task's data.
        stop: asks to save and end.
        watch: called whenever something happened.
    """

    folder: Path
    space: Space
    fixed: Mapping[str, Any]
    config: TuneConfig
    study: Study
    quality: Quality
    shelf: Shelf
    stop: StopRequest
    watch: Callable[[], None]

    def run(self, unfinished: list[int]) -> None:
        """Go on with these trials, then begin new ones until there are enough.

        Raises:
            InputError: for what concerns the machine (a full disk), not one trial.
            Interrupted: after SIGTERM or SIGINT; the trial in training has been saved.
        """
        for number in unfinished:
            frozen = self.study.get_trials(deepcopy=False)[number]
            self._make(Trial(self.study, frozen._trial_id))
        while (trial := self._begin()) is not None:
            self._make(trial)

    def _begin(self) -> Trial | None:
        """The next trial, drawn, or None when there are enough."""
        if self.stop.signal is not None:
            raise Interrupted(self.stop.signal, STOPPED)
        with self._claiming():
            if len(self.study.get_trials(deepcopy=False)) >= self.config.trials:
                return None
            trial = self.study.ask()
            # Under the lock, so that no two workers draw without knowing of each other. What is wrong is told of the
            # trial when it is made.
            with suppress(InputError):
                self._draw(trial)
            return trial

    @contextmanager
    def _claiming(self) -> Iterator[None]:
        with open_without_links(self.folder / CLAIM, "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _draw(self, trial: Trial) -> dict[str, Any]:
        groups, drawn = self.space.draw(trial, self.fixed)
        trial.set_user_attr(DRAWN, plain(drawn))
        return groups

    def _make(self, trial: Trial) -> None:
        self.watch()
        folder = folder_of(self.folder, trial.number)
        try:
            groups = self._draw(trial)
            twin = self._twin(trial)
            if twin is not None:
                self._repeat(trial, twin)
            else:
                self._end(trial, self._train(trial, groups, folder))
        except Exception as error:
            if is_of_the_machine(error):
                raise
            # A block that cannot do with what was drawn: its author finds where, the search goes on.
            self._fail(trial, keep_failure(error, folder))
        # The weights of the best are made again with fresh seeds; those of all would fill the disk.
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        self.watch()

    def _train(self, trial: Trial, groups: Mapping[str, Any], folder: Path) -> Ended:
        run, data = self.shelf.fitted(resolve(groups, self.space.task))
        self._check_figure(run, data)
        plan = self._plan(trial, run, data)
        run = planned_run(run, plan, self.config)

        def judge(part: int, value: float) -> bool:
            told = self.study.get_trials(deepcopy=False)[trial.number]
            if told.last_step is not None and part < told.last_step:
                # A run that had to be made again.
                return False
            if part not in told.intermediate_values:
                trial.report(value, part)
            self.watch()
            return bool(trial.should_prune())

        return train_to_budget(run, data, folder, plan, self.config, self.stop, judge)

    def _plan(self, trial: Trial, run: Run[Any, Any], data: Any) -> Plan:
        """Its steps, decided once: measured speeds differ from one start to the next."""
        kept = trial.user_attrs.get(PLAN)
        plan = Plan(*kept) if kept else make_plan(run, data, self.config)
        trial.set_user_attr(PLAN, [plan.steps, plan.seconds_per_step])
        return plan

    def _check_figure(self, run: Run[Any, Any], data: Any) -> None:
        """Refuse a trial whose figure is another than the search's, such as a loss per other tokens."""
        found = run.kind.quality(data)
        for name in ("metric", "unit", "key", "better"):
            mine, its = getattr(found, name), getattr(self.quality, name)
            if mine != its:
                raise InputError(f"its figure has {name} {mine!r}, that of the search {its!r}: not comparable")
        mine, its = found.facts.get("bytes_per_token"), self.quality.facts.get("bytes_per_token")
        if mine != its:
            raise InputError(f"its tokens are {mine:.3f} bytes long, those of the search {its:.3f}: losses per token "
                             "are not comparable")  # fmt: skip

    def _twin(self, trial: Trial) -> FrozenTrial | None:
        """The trial that ended with the same settings: its run is a function of them."""
        drawn = trial.user_attrs[DRAWN]
        return next((t for t in ended_trials(self.study) if t.user_attrs.get(DRAWN) == drawn), None)

    def _repeat(self, trial: Trial, twin: FrozenTrial) -> None:
        told = self.study.get_trials(deepcopy=False)[trial.number].intermediate_values
        for part, value in twin.intermediate_values.items():
            if part not in told:
                trial.report(value, part)
        trial.set_user_attr(SAME_AS, twin.user_attrs.get(SAME_AS, twin.number))
        for name in (STATUS, NOTE, RESULT):
            if name in twin.user_attrs:
                trial.set_user_attr(name, twin.user_attrs[name])
        self._tell(trial, twin.user_attrs[STATUS], twin.value)

    def _end(self, trial: Trial, ended: Ended) -> None:
        trial.set_user_attr(STATUS, ended.status)
        trial.set_user_attr(NOTE, ended.note)
        trial.set_user_attr(RESULT, {name: value for name, value in vars(ended).items() if name != "curve"})
        self._tell(trial, ended.status, ended.value)

    def _fail(self, trial: Trial, reason: str) -> None:
        fail_trial(self.study, trial.number, reason)

    def _tell(self, trial: Trial, status: str, value: float | None) -> None:
        if status == "finished":
            self.study.tell(trial, value)
        else:
            tell_lost(self.study, trial)


def tell_lost(study: Study, trial: Trial) -> None:
    """End a trial that failed or diverged.

    To Optuna it is one that was stopped: as bad as any, so that its neighbourhood is left alone. Its own state for
    failures would be forgotten by the sampler, and tried again and again.
    """
    study.tell(trial, state=TrialState.PRUNED)


def fail_trial(study: Study, number: int, reason: str) -> None:
    """End a trial that could not be made."""
    trial = Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)
    trial.set_user_attr(STATUS, "failed")
    trial.set_user_attr(NOTE, reason)
    tell_lost(study, trial)


def folder_of(folder: Path, number: int) -> Path:
    """Where a trial's run lives."""
    return folder / TRIALS / f"{number:04}"


def sweep(folder: Path, study: Study) -> None:
    """Remove the weights of trials that ended when a kill came between their end and that."""
    for trial in ended_trials(study):
        shutil.rmtree(folder_of(folder, trial.number) / CHECKPOINTS, ignore_errors=True)
