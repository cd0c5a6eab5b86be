"""The best trials as choices of a comparison with seeds that the search has not seen, beside the default configuration.

The best of many trials is best partly by luck, and its figure flatters it. What the search found is therefore judged by
fresh runs alone: as many of the default configuration, with the same seeds and the same budget, trained in turns as any
comparison's (compare/runs.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.study import Study
from optuna.trial import TrialState

from blockyard.compare.jobs import Job, Key
from blockyard.compare.plan import task_on_meta
from blockyard.compare.results import read_result
from blockyard.errors import InputError
from blockyard.report.schema import Run
from blockyard.tasks.run import DataCache
from blockyard.tasks.settings import as_groups, resolve
from blockyard.training.folder import read_config
from blockyard.tune.plan import Plan, SearchSpec, job_of, make_plan
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
        """Return where a run of it lives."""
        return out / FINALS / self.name.replace(" ", "-") / f"seed-{seed}"


def best_trials(study: Study, many: int) -> list[int]:
    """Return numbers of the best finished trials, each configuration once, the best first."""
    found = [
        t
        for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if t.value is not None and SAME_AS not in t.user_attrs
    ]
    sign = 1 if study.direction.name == "MINIMIZE" else -1
    return [t.number for t in sorted(found, key=lambda t: (sign * (t.value or 0.0), t.number))[:many]]


def candidates_of(study: Study, spec: SearchSpec) -> list[Candidate]:
    """List the default configuration, if there is one, and the best trials that are others than it."""
    found: list[Candidate] = []
    same: Any = None
    if spec.default is not None:
        found.append(Candidate(DEFAULT, None, {}, spec.default))
        same = as_groups(resolve(spec.default, spec.task))
    for number in best_trials(study, spec.config.finalists):
        trial = study.get_trials(deepcopy=False)[number]
        drawn = trial.user_attrs[DRAWN]
        groups = spec.space.with_drawn(drawn, spec.fixed)
        if as_groups(resolve(groups, spec.task)) != same:
            found.append(Candidate(f"trial {number}", number, drawn, groups, Plan(*trial.user_attrs[PLAN])))
    return found


def fresh_seeds(candidates: Sequence[Candidate], spec: SearchSpec) -> list[int]:
    """Return seeds that no trial was trained with."""
    first = resolve(candidates[0].groups, spec.task).train.seed + 1
    return list(range(first, first + spec.config.seeds))


def jobs_of(
    candidates: Sequence[Candidate], seeds: Sequence[int], spec: SearchSpec, cache: DataCache
) -> tuple[dict[int, list[Job]], dict[str, int]]:
    """List every run by seed, and how many parameters each candidate has.

    Raises:
        InputError: when a run cannot be made.
    """
    jobs: dict[int, list[Job]] = {seed: [] for seed in seeds}
    parameters = {}
    for candidate in candidates:
        run, data = cache.fitted(resolve(candidate.groups, spec.task))
        parameters[candidate.name] = sum(p.numel() for p in task_on_meta(run, data).model.parameters())
        folders = [candidate.folder(spec.out, seed) for seed in seeds]
        kept = next((plan for folder in folders if (plan := kept_plan(folder))), None)
        plan = candidate.plan or kept or make_plan(run, data, spec.config)
        for seed, folder in zip(seeds, folders):
            jobs[seed].append(job_of(candidate.name, run, data, plan, spec.config, folder, seed=seed))
    return jobs, parameters


def kept_plan(folder: Path) -> Plan | None:
    """Return the plan of a run that was cut off, from its settings: a measured speed would be another one."""
    try:
        return Plan(int(read_config(folder)["train"]["steps"]))
    except (InputError, KeyError, TypeError):
        return None


def read_finals(jobs: Mapping[int, Sequence[Job]]) -> dict[Key, Run]:
    """Return the runs that have ended, by candidate and seed."""
    found = {job.key: read_result(job.folder) for group in jobs.values() for job in group}
    return {key: run for key, run in found.items() if run is not None}
