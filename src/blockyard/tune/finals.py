"""The best trials once more, with seeds that the search has not seen, beside the default configuration.

The best of many trials is best partly by luck, and its figure flatters it. What the search found is therefore judged by
fresh runs alone: as many of the default configuration, with the same seeds and the same budget.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.study import Study
from optuna.trial import TrialState

from blockyard.errors import InputError
from blockyard.tasks.settings import as_groups, resolve
from blockyard.training.interrupt import StopRequest
from blockyard.tune.budgeted import Ended, Plan, Shelf, make_plan, planned_run, read_ended, train_to_budget
from blockyard.tune.settings import TuneConfig
from blockyard.tune.space import Space
from blockyard.tune.trials import DRAWN, PLAN, SAME_AS

FINALS, DEFAULT = "finals", "default"


@dataclass(frozen=True)
class Candidate:
    """One configuration that is run again.

    Args:
        name: "default", or "trial 7".
        number: of the trial.
        drawn: what it drew; nothing for the default configuration.
        groups: its option groups.
        plan: steps and pace, where they are known.
    """

    name: str
    number: int | None
    drawn: Mapping[str, Any]
    groups: Mapping[str, Any]
    plan: Plan | None = None

    def folder(self, out: Path, seed: int) -> Path:
        """Where a run of it lives."""
        return out / FINALS / self.name.replace(" ", "-") / f"seed-{seed}"


@dataclass(frozen=True)
class Final:
    """One run of a candidate."""

    candidate: Candidate
    seed: int

    @property
    def key(self) -> tuple[str, int]:
        return self.candidate.name, self.seed


def best_trials(study: Study, many: int) -> list[int]:
    """Numbers of the best finished trials, each configuration once, the best first."""
    found = [
        t
        for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if t.value is not None and SAME_AS not in t.user_attrs
    ]
    sign = 1 if study.direction.name == "MINIMIZE" else -1
    return [t.number for t in sorted(found, key=lambda t: (sign * (t.value or 0.0), t.number))[:many]]


def candidates_of(
    study: Study, space: Space, fixed: Mapping[str, Any], config: TuneConfig, default: Mapping[str, Any] | None
) -> list[Candidate]:
    """The default configuration, if there is one, and the best trials that are others than it."""
    found: list[Candidate] = []
    same: Any = None
    if default is not None:
        found.append(Candidate(DEFAULT, None, {}, default))
        same = as_groups(resolve(default, space.task))
    for number in best_trials(study, config.finalists):
        trial = study.get_trials(deepcopy=False)[number]
        drawn = trial.user_attrs[DRAWN]
        groups = space.with_drawn(drawn, fixed)
        if as_groups(resolve(groups, space.task)) != same:
            found.append(Candidate(f"trial {number}", number, drawn, groups, Plan(*trial.user_attrs[PLAN])))
    return found


def fresh_seeds(candidates: Sequence[Candidate], task: str, config: TuneConfig) -> list[int]:
    """Seeds that no trial was trained with."""
    first = resolve(candidates[0].groups, task).train.seed + 1
    return list(range(first, first + config.seeds))


def jobs_of(candidates: Sequence[Candidate], seeds: Sequence[int]) -> list[Final]:
    """Every run, a seed at a time, so that a slow hour falls on all candidates alike."""
    return [Final(candidate, seed) for seed in seeds for candidate in candidates]


def make_finals(
    jobs: Sequence[Final],
    out: Path,
    task: str,
    config: TuneConfig,
    shelf: Shelf,
    stop: StopRequest,
    watch: Callable[[Final, int, float | None, Ended | None], None],
) -> None:
    """Train what is missing.

    Args:
        jobs: the runs.
        out: the search's folder.
        task: the kind of task, by name.
        config: the terms.
        shelf: the task's data.
        stop: asks to save and end.
        watch: told the run, how many parts of its budget it has been judged at, its figure, and when it ended what came
            of it.

    Raises:
        InputError: when a run cannot be made.
        Interrupted: after SIGTERM or SIGINT; the run in training has been saved.
    """
    plans: dict[str, Plan] = {}
    for job in jobs:
        folder = job.candidate.folder(out, job.seed)
        kept = read_ended(folder)
        if kept is None:
            run, data = shelf.fitted(resolve(job.candidate.groups, task))
            name = job.candidate.name
            plans[name] = job.candidate.plan or plans.get(name) or kept_plan(folder) or make_plan(run, data, config)
            run = planned_run(run, plans[name], config, seed=job.seed)

            def judge(part: int, value: float, job: Final = job) -> bool:
                watch(job, part, value, None)
                return False

            kept = train_to_budget(run, data, folder, plans[name], config, stop, judge)
        watch(job, config.evaluations, kept.value, kept)


def kept_plan(folder: Path) -> Plan | None:
    """The plan of a run that was cut off, from its settings: a measured speed would be another one."""
    from blockyard.training.folder import read_config

    try:
        steps = read_config(folder)["train"]["steps"]
    except (InputError, KeyError, TypeError):
        return None
    return Plan(int(steps))


def read_finals(jobs: Sequence[Final], out: Path) -> dict[tuple[str, int], Ended]:
    """The runs that have ended, by candidate and seed."""
    found = {job.key: read_ended(job.candidate.folder(out, job.seed)) for job in jobs}
    return {key: ended for key, ended in found.items() if ended is not None}
