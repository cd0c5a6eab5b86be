"""One run of the training engine at a budget, judged at even parts of it: what a trial is, and what a final is."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from blockyard.compare.budget import expected_steps, next_slice, steps_for
from blockyard.compare.failures import is_of_the_machine
from blockyard.compare.measure import seconds_per_step
from blockyard.compare.plan import task_on_meta, watched
from blockyard.compare.processes import STOPPED
from blockyard.compare.runs import RESULT, read_metrics
from blockyard.errors import InputError
from blockyard.files import parse_json, without_nan, write_atomically
from blockyard.models.config import BlocksConfig
from blockyard.tasks.kind import Quality, Run
from blockyard.tasks.run import open_trainer
from blockyard.tasks.sizes import check_data, check_training
from blockyard.training.folder import CONFIG
from blockyard.training.guard import NonFiniteError
from blockyard.training.interrupt import Interrupted, StopRequest
from blockyard.training.trainer import Trainer
from blockyard.tune.settings import TuneConfig

# Steps between two looks at whether a signal came.
SLICE_STEPS = 10


@dataclass(frozen=True)
class Plan:
    """How long a run is.

    Args:
        steps: optimizer steps; with a budget in seconds, the most it may make.
        seconds_per_step: training clock of a step as measured before, for a budget in seconds.
    """

    steps: int
    seconds_per_step: float | None = None


@dataclass
class Ended:
    """What came of a run.

    Args:
        status: finished, pruned or diverged.
        value: the figure at the end of the budget; the last one reported for a run that was stopped.
        part: how many parts of the budget it was judged at.
        steps: optimizer steps made.
        tokens: units of input trained on.
        seconds: training clock.
        cpu_seconds: processor time.
        flops: by formula.
        parameters: of the model.
        curve: the figures by `tokens` and `part` of the budget.
        note: why it ended, if not at its end.
    """

    status: str
    value: float | None
    part: int
    steps: int
    tokens: int
    seconds: float
    cpu_seconds: float
    flops: float
    parameters: int
    curve: dict[str, list[Any]] = field(default_factory=dict)
    note: str = ""


class Shelf:
    """The task's data, read again only for a run that needs others: other data options, or another model whose own
    options (a context, a horizon) the data may follow. Blocks and widths are never among these."""

    def __init__(self) -> None:
        self._key: Any = None
        self._data: Any = None

    def fitted(self, run: Run[Any, Any]) -> tuple[Run[Any, Any], Any]:
        """The run with a model that fits its data, and the data.

        Raises:
            InputError: also for what does not fit into memory, before it is read or built.
        """
        check_data(run)
        check_training(run, fitted=False)
        shape = set(BlocksConfig.__dataclass_fields__)
        key = (run.data, {k: v for k, v in vars(run.model).items() if k not in shape})
        if self._key != key:
            self._data, self._key = run.kind.load_data(run.data, run.model), key
        fitted = replace(run, model=run.kind.fit(run.model, self._data.assets))
        check_training(fitted, fitted=True)
        return fitted, self._data


def make_plan(run: Run[Any, Any], data: Any, config: TuneConfig) -> Plan:
    """Turn the budget into steps.

    Raises:
        InputError: when the model cannot be built, or the budget is less than a step.
    """
    unit, value = config.budget_unit, config.budget_value
    task = task_on_meta(run, data)
    if unit == "steps":
        if value < 0.5:
            raise InputError(f"budget.value={value:g} steps is less than one")
        return Plan(round(value))
    pace = seconds_per_step({"": run}, data, value)[""] if unit == "seconds" else None
    steps = steps_for(
        unit,
        value,
        tokens_per_step=task.tokens_per_step,
        flops_per_step=task.flops_per_step,
        seconds_per_step=pace,
    )
    return Plan(steps, pace)


def planned_run(run: Run[Any, Any], plan: Plan, config: TuneConfig, *, seed: int | None = None) -> Run[Any, Any]:
    """The run as it is trained: its steps, with at most `evaluations` evaluations and as many checkpoints."""
    expected = expected_steps(config.budget_unit, plan.steps)
    every = math.ceil(expected / config.evaluations)
    seed = run.train.seed if seed is None else seed
    return replace(run, train=watched(run.train, plan.steps, expected, every, seed))


def train_to_budget(
    run: Run[Any, Any],
    data: Any,
    folder: Path,
    plan: Plan,
    config: TuneConfig,
    stop: StopRequest,
    judge: Callable[[int, float], bool],
) -> Ended:
    """Train, or go on where the last checkpoint is.

    Args:
        run: as `planned_run` makes it, fitted to its data.
        data: its data.
        folder: its run folder.
        plan: its steps and pace.
        config: the terms.
        stop: asks it to save and end.
        judge: told the figure at every part of the budget (1 to `evaluations`), in rising order and, after a kill,
            some of them again; says whether the run shall be stopped there.

    Raises:
        InputError: when the run cannot be made, or its folder cannot be written.
        Interrupted: after SIGTERM or SIGINT, when it has been saved.
    """
    kept = read_ended(folder)
    if kept is not None:
        return kept
    quality = run.kind.quality(data)
    trainer = _open(run, data, folder)
    try:
        ended = _train(trainer, quality, folder, plan, config, stop, judge)
    finally:
        trainer.close()
    write_ended(folder, ended)
    return ended


def _open(run: Run[Any, Any], data: Any, folder: Path) -> Trainer:
    def make(resume: bool) -> Trainer:
        task = run.kind.make_task(run, data)
        return open_trainer(run, task, folder, resume=resume)

    if not (folder / CONFIG).exists():
        return make(False)
    try:
        return make(True)
    except InputError as error:
        if is_of_the_machine(error):
            raise
        # A checkpoint that cannot be gone on from: the run is made again.
        shutil.rmtree(folder)
        return make(False)


def _train(
    trainer: Trainer,
    quality: Quality,
    folder: Path,
    plan: Plan,
    config: TuneConfig,
    stop: StopRequest,
    judge: Callable[[int, float], bool],
) -> Ended:
    every, told = trainer.config.eval_every, 0
    while True:
        spent, part = _spent(trainer, plan, config)
        row = trainer.last_metrics
        if spent and row.get("step") != trainer.step:
            # The clock ended it between two evaluations.
            row = {"step": trainer.step, "tokens": trainer.tokens, "seconds": trainer.seconds, **trainer.evaluate()}
            trainer.save()
        if row.get("step") == trainer.step and quality.key in row and part > told:
            told, figure = part, row[quality.key]
            if figure is None or not math.isfinite(figure):
                note = f"{quality.metric} is not finite after {trainer.step} steps"
                return _ended("diverged", trainer, quality, folder, config, told, row, note)
            if judge(part, figure) and not spent:
                return _ended("pruned", trainer, quality, folder, config, told, row)
        if spent:
            return _ended("finished", trainer, quality, folder, config, told, row)
        if stop.signal is not None:
            trainer.save()
            raise Interrupted(stop.signal, STOPPED)
        ahead = min(SLICE_STEPS, every - trainer.step % every)
        pace = plan.seconds_per_step
        try:
            trainer.advance(next_slice(trainer, config.budget_unit, config.budget_value, pace, ahead))
        except NonFiniteError as error:
            return _ended("diverged", trainer, quality, folder, config, told, {}, str(error))


def _spent(trainer: Trainer, plan: Plan, config: TuneConfig) -> tuple[bool, int]:
    """Whether the budget is spent, and how many whole parts of it are; the last part is over only with the budget."""
    by_clock = config.budget_unit == "seconds"
    share = trainer.seconds / config.budget_value if by_clock else trainer.step / plan.steps
    if trainer.done or share >= 1:
        return True, config.evaluations
    return False, min(int(share * config.evaluations + 1e-9), config.evaluations - 1)


def _ended(
    status: str,
    trainer: Trainer,
    quality: Quality,
    folder: Path,
    config: TuneConfig,
    part: int,
    last: Mapping[str, Any],
    note: str = "",
) -> Ended:
    rows: list[Mapping[str, Any]] = [row for row in read_metrics(folder) if quality.key in row]
    if quality.key in last and (not rows or rows[-1]["step"] != last["step"]):
        rows.append(last)
    by_clock = config.budget_unit == "seconds"
    total = config.budget_value if by_clock else trainer.config.steps
    return Ended(
        status=status,
        value=None if status == "diverged" else rows[-1][quality.key],
        part=part,
        steps=trainer.step,
        tokens=trainer.tokens,
        seconds=round(trainer.seconds, 3),
        cpu_seconds=round(trainer.cpu_seconds, 3),
        flops=float(trainer.flops),
        parameters=sum(p.numel() for p in trainer.task.model.parameters()),
        curve={
            "tokens": [row["tokens"] for row in rows],
            "part": [round(min(1.0, (row["seconds"] if by_clock else row["step"]) / total), 4) for row in rows],
            "value": [row[quality.key] for row in rows],
        },
        note=note,
    )


def read_ended(folder: Path) -> Ended | None:
    """What came of the run in a folder, if it has ended; a damaged record counts as none and is made again."""
    try:
        return Ended(**parse_json((folder / RESULT).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_ended(folder: Path, ended: Ended) -> None:
    """Keep what came of a run.

    Raises:
        InputError: when it cannot be written.
    """
    write_atomically(folder / RESULT, json.dumps(without_nan(asdict(ended)), allow_nan=False))
