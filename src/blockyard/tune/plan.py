"""What is searched for, and one run of it as a job of a comparison: its steps, its evaluations, its folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from blockyard.compare.budget import expected_steps
from blockyard.compare.jobs import Job
from blockyard.compare.measure import seconds_per_step
from blockyard.compare.plan import Planned, task_on_meta, watched
from blockyard.tasks.kind import Quality, Run, TaskKind, task_kind
from blockyard.tune.settings import TuneConfig
from blockyard.tune.space import Space


@dataclass(frozen=True)
class SearchSpec:
    """What a search was asked for, and where it is.

    Args:
        task: the kind of task, by name.
        quality: the figure that is searched for the best of.
        config: the terms.
        space: what is searched.
        fixed: option groups that all trials share.
        default: the default configuration's groups; None where the options searched have no defaults.
        out: the search's folder.
    """

    task: str
    quality: Quality
    config: TuneConfig
    space: Space
    fixed: Mapping[str, Any]
    default: Mapping[str, Any] | None
    out: Path

    @property
    def kind(self) -> TaskKind[Any, Any, Any]:
        return task_kind(self.task)


class Plan(NamedTuple):
    """How long a run is.

    Args:
        steps: optimizer steps; with a budget in seconds, the most it may make.
        seconds_per_step: training clock of a step as measured before, for a budget in seconds.
    """

    steps: int
    seconds_per_step: float | None = None


def make_plan(run: Run[Any, Any], data: Any, config: TuneConfig) -> Plan:
    """Turn the budget into steps.

    Raises:
        InputError: when the model cannot be built, or the budget is less than a step.
    """
    task, by_clock = task_on_meta(run, data), config.budget_unit == "seconds"
    pace = seconds_per_step({"": run}, data, config.budget_value)[""] if by_clock else None
    return Plan(config.budget.steps(task, pace), pace)


def planned_run(run: Run[Any, Any], plan: Plan, config: TuneConfig, *, seed: int | None = None) -> Run[Any, Any]:
    """Return the run as it is trained: its steps, with at most `evaluations` evaluations and as many checkpoints."""
    expected = expected_steps(config.budget_unit, plan.steps)
    every = math.ceil(expected / config.evaluations)
    seed = run.train.seed if seed is None else seed
    return replace(run, train=watched(run.train, plan.steps, expected, every, seed))


def job_of(
    name: str,
    run: Run[Any, Any],
    data: Any,
    plan: Plan,
    config: TuneConfig,
    folder: Path,
    *,
    seed: int | None = None,
    judge: Callable[[float, float], bool] | None = None,
) -> Job:
    """Make the job of a run that is fitted to its data; arguments as for `planned_run` and `compare.jobs.Job`."""
    run = planned_run(run, plan, config, seed=seed)
    match: Any = {"unit": "none", "target": 0, "got": 0, "miss": 0.0, "changed": {}, "note": ""}
    planned = Planned(name, run.model, match, plan.steps, plan.seconds_per_step)
    return Job(planned, run.train.seed, folder, run, data, searched=True, judge=judge)
