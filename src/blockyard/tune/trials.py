"""The trials of a search, as one process makes them: draw, train, judge, tell."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from blockyard.compare.failures import is_of_the_machine, keep_failure
from blockyard.compare.jobs import Job, lines_of
from blockyard.compare.live import Silent
from blockyard.compare.plan import task_on_meta
from blockyard.compare.processes import STOPPED
from blockyard.compare.results import read_result
from blockyard.compare.turns import train_in_turns
from blockyard.errors import InputError
from blockyard.files import open_without_links, plain
from blockyard.report.schema import Run, final_of
from blockyard.tasks.kind import Quality
from blockyard.tasks.run import DataCache
from blockyard.tasks.settings import resolve
from blockyard.training.folder import CHECKPOINTS
from blockyard.training.interrupt import Interrupted, StopRequest
from blockyard.tune.plan import Plan, SearchSpec, job_of, make_plan
from blockyard.tune.search import ended_trials
from blockyard.tune.storage import beating, claim, is_mine, reaching

TRIALS, CLAIM = "trials", "claim.lock"
# What a trial notes about itself in the journal.
DRAWN, STATUS, NOTE, PLAN, SAME_AS, RESULT = "drawn", "status", "note", "plan", "same_as", "result"


@dataclass(frozen=True)
class Search:
    """A search in a folder, as one process goes on with it.

    Args:
        spec: what is searched.
        study: Optuna's part.
        cache: the task's data.
        stop: asks to save and end.
        watch: called whenever something happened.
        owner: who makes trials here, where several machines search in one database.
    """

    spec: SearchSpec
    study: Study
    cache: DataCache
    stop: StopRequest
    watch: Callable[[], None]
    owner: str = ""

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
        """Return the next trial, drawn, or None when there are enough."""
        if self.stop.signal is not None:
            raise Interrupted(self.stop.signal, STOPPED)
        if self.spec.config.storage is not None:
            offered = claim(self.study, self.owner)
            if offered is not None:
                with suppress(InputError):
                    self._draw(offered)
            return offered
        with self._claiming():
            if len(self.study.get_trials(deepcopy=False)) >= self.spec.config.trials:
                return None
            trial = self.study.ask()
            # Under the lock, so that no two workers draw without knowing of each other. What is wrong is told of the
            # trial when it is made.
            with suppress(InputError):
                self._draw(trial)
            return trial

    @contextmanager
    def _claiming(self) -> Iterator[None]:
        with open_without_links(self.spec.out / CLAIM, "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _draw(self, trial: Trial) -> dict[str, Any]:
        groups, drawn = self.spec.space.draw(trial, self.spec.fixed)
        trial.set_user_attr(DRAWN, plain(drawn))
        return groups

    def _make(self, trial: Trial) -> None:
        if self.spec.config.storage is None:
            self._run(trial)
        elif self._is_mine(trial):
            with beating(self.study, trial):
                self._run(trial)

    def _run(self, trial: Trial) -> None:
        self.watch()
        folder = folder_of(self.spec.out, trial.number)
        try:
            with reaching(self.spec.config.storage):
                groups = self._draw(trial)
                twin = self._twin(trial)
                if twin is not None:
                    self._repeat(trial, twin)
                else:
                    made = self._train(trial, groups, folder)
                    if self._is_mine(trial):
                        self._end(trial, *made)
        except Exception as error:
            if is_of_the_machine(error):
                raise
            # A block that cannot do with what was drawn: its author finds where, the search goes on.
            reason = keep_failure(error, folder)
            if self._is_mine(trial):
                fail_trial(self.study, trial.number, reason)
        # The weights of the best are made again with fresh seeds; those of all would fill the disk.
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        self.watch()

    def _is_mine(self, trial: Trial) -> bool:
        """Return whether the trial may be ended here; of a machine that was thought lost it is another's by then."""
        return self.spec.config.storage is None or is_mine(self.study, trial.number, self.owner)

    def _train(self, trial: Trial, groups: dict[str, Any], folder: Path) -> tuple[Run, int]:
        """Train a trial; returns the run and how many parameters its model has."""
        run, data = self.cache.fitted(resolve(groups, self.spec.task))
        check_figure(run.kind.quality(data), self.spec.quality)
        config = self.spec.config
        kept = trial.user_attrs.get(PLAN)
        # Its steps are decided once: measured speeds differ from one start to the next.
        plan = Plan(*kept) if kept else make_plan(run, data, config)
        trial.set_user_attr(PLAN, list(plan))
        judged = 0

        def judge(share: float, value: float) -> bool:
            nonlocal judged
            # The last part is over only with the budget.
            part = min(int(share * config.evaluations + 1e-9), config.evaluations - (share < 1))
            before, judged = judged, max(judged, part)
            return part > before and self._report(trial, part, value)

        job = job_of(f"trial {trial.number}", run, data, plan, config, folder, judge=judge)
        parameters = sum(p.numel() for p in task_on_meta(run, data).model.parameters())
        return read_result(folder) or self._run_of(job), parameters

    def _run_of(self, job: Job) -> Run:
        turns = train_in_turns([job], self.spec.config.budget, Silent(), lines_of({job.seed: [job]}), self.stop)
        ((_, run),) = turns
        return run

    def _report(self, trial: Trial, part: int, value: float) -> bool:
        """Report the figure at a part of the budget; returns whether the trial shall be stopped there."""
        # Within: whoever trains a run takes any other error for one of the run.
        with reaching(self.spec.config.storage):
            known = self.study.get_trials(deepcopy=False)[trial.number]
            if known.last_step is not None and part < known.last_step:
                # A run that had to be made again.
                return False
            if part not in known.intermediate_values:
                # Whoever took it over may have ended it.
                with suppress(UpdateFinishedTrialError):
                    trial.report(value, part)
            self.watch()
            return bool(trial.should_prune())

    def _twin(self, trial: Trial) -> FrozenTrial | None:
        """Return the trial that ended with the same settings: its run is a function of them."""
        drawn = trial.user_attrs[DRAWN]
        return next((t for t in ended_trials(self.study) if t.user_attrs.get(DRAWN) == drawn), None)

    def _repeat(self, trial: Trial, twin: FrozenTrial) -> None:
        known = self.study.get_trials(deepcopy=False)[trial.number].intermediate_values
        for part, value in twin.intermediate_values.items():
            if part not in known:
                trial.report(value, part)
        trial.set_user_attr(SAME_AS, twin.user_attrs.get(SAME_AS, twin.number))
        for name in (STATUS, NOTE, RESULT):
            if name in twin.user_attrs:
                trial.set_user_attr(name, twin.user_attrs[name])
        self._tell(trial, twin.user_attrs[STATUS], twin.value)

    def _end(self, trial: Trial, run: Run, parameters: int) -> None:
        if run["status"] == "failed":
            fail_trial(self.study, trial.number, run["note"])
            return
        reported = self.study.get_trials(deepcopy=False)[trial.number].intermediate_values
        value = reported[max(reported)] if run["status"] == "pruned" else final_of(run)
        spent = {name: run[name] for name in ("steps", "tokens", "seconds", "cpu_seconds", "flops")}
        trial.set_user_attr(STATUS, run["status"])
        trial.set_user_attr(NOTE, run["note"])
        trial.set_user_attr(RESULT, {"value": value, "parameters": parameters, **spent})
        self._tell(trial, run["status"], value)

    def _tell(self, trial: Trial, status: str, value: float | None) -> None:
        if status == "finished":
            self.study.tell(trial, value)
        else:
            tell_lost(self.study, trial)


def check_figure(found: Quality, wanted: Quality) -> None:
    """Refuse a trial whose figure is another than the search's, such as a loss per other tokens."""
    for name in ("metric", "unit", "key", "better"):
        mine, its = getattr(found, name), getattr(wanted, name)
        if mine != its:
            raise InputError(f"its figure has {name} {mine!r}, that of the search {its!r}: not comparable")
    mine, its = found.facts.get("bytes_per_token"), wanted.facts.get("bytes_per_token")
    if mine != its:
        raise InputError(
            f"its tokens are {mine:.3f} bytes long, those of the search {its:.3f}: losses per token are not comparable"
        )


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
    """Return where a trial's run lives."""
    return folder / TRIALS / f"{number:04}"


def sweep(folder: Path, study: Study) -> None:
    """Remove the weights of trials that ended when a kill came between their end and that."""
    for trial in ended_trials(study):
        shutil.rmtree(folder_of(folder, trial.number) / CHECKPOINTS, ignore_errors=True)
