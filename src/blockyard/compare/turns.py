"""Trains runs in turns in this process, so that a slow hour of the machine falls on every choice alike.

All choices with one seed advance together, a slice of steps each; then the next seed.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from blockyard.compare.budget import Budget
from blockyard.compare.failures import is_of_the_machine, keep_failure
from blockyard.compare.jobs import (
    Job,
    Key,
    end_line,
    kept_results,
    lines_of,
    lost_run,
    note_end,
    record_run,
    spent_by,
)
from blockyard.compare.live import Board, Line
from blockyard.compare.processes import STOPPED
from blockyard.compare.results import read_metrics
from blockyard.errors import InputError
from blockyard.report import schema
from blockyard.tasks.run import open_trainer
from blockyard.training.folder import CONFIG
from blockyard.training.guard import NonFiniteError
from blockyard.training.interrupt import Interrupted, StopRequest
from blockyard.training.trainer import Trainer


def train_all(jobs: Mapping[int, list[Job]], budget: Budget, board: Board) -> dict[Key, schema.Run]:
    """Train what is missing; returns every run by (choice, seed).

    Raises:
        Interrupted: after SIGTERM or SIGINT, when the runs in training have been saved.
    """
    lines = lines_of(jobs)
    # Asked of the folders alone, so that it does not matter which process made a run, or when.
    results = kept_results(jobs, lines)
    board.show(list(lines.values()), now=True)
    # One for all seeds: a signal that comes as the last run of a seed ends is for the next ones, too.
    with StopRequest().listening() as stop:
        for group in jobs.values():
            missing = [job for job in group if job.key not in results]
            for job, run in train_in_turns(missing, budget, board, lines, stop):
                results[job.key] = run
            if stop.signal is not None:
                raise Interrupted(stop.signal, STOPPED)
    return results


def train_in_turns(
    jobs: Sequence[Job], budget: Budget, board: Board, lines: Mapping[Key, Line], stop: StopRequest
) -> Iterator[tuple[Job, schema.Run]]:
    """Train runs, a slice of steps each in turn; yields each with its record when it ends.

    Raises:
        InputError: for a run that cannot be made.
        Interrupted: when `stop` is asked for and the runs in training have been saved.
    """

    def tell(job: Job, ended: schema.Run) -> None:
        note_end(lines[job.key], ended, "finished")
        board.say(end_line(job, ended, job.quality))

    with ExitStack() as open_runs:
        waiting: list[LiveRun] = []
        for job in jobs:
            try:
                waiting.append(LiveRun(job, budget))
                open_runs.callback(waiting[-1].trainer.close)
            except Exception as error:
                if is_of_the_machine(error) or isinstance(error, InputError):
                    raise
                # A block that cannot be built is a result: the others are trained, and the report says what was wrong.
                lost = lost_run(job, "failed", keep_failure(error, job.folder))
                tell(job, lost)
                yield job, lost
        while waiting:
            # There and back again: the first in one round is the last in the next.
            for live in list(waiting):
                ended = live.turn()
                # Between slices, never within a step: showing costs the run that is shown.
                live.show_in(lines[live.job.key])
                if ended is not None:
                    live.trainer.close()
                    waiting.remove(live)
                    tell(live.job, ended)
                    yield live.job, ended
                board.show(list(lines.values()), now=ended is not None)
                if stop.signal is not None and waiting:
                    # All of them, since each has made steps since its last checkpoint.
                    for left in waiting:
                        left.trainer.save()
                    raise Interrupted(stop.signal, STOPPED)
            waiting.reverse()


class LiveRun:
    """A run in training, which ends with its budget, by its judge, or with an error of its own."""

    def __init__(self, job: Job, budget: Budget) -> None:
        self.job, self.budget, self.trainer = job, budget, _open(job)

    def turn(self) -> schema.Run | None:
        """Make one slice of steps; returns the run's record when that ended it."""
        try:
            # A run that was cut off may have been due to be judged.
            return self._look() or self._go_on()
        except NonFiniteError as error:
            return lost_run(self.job, "diverged", str(error), self.trainer)
        except Exception as error:
            if is_of_the_machine(error):
                raise
            return lost_run(self.job, "failed", keep_failure(error, self.job.folder), self.trainer)

    def _go_on(self) -> schema.Run | None:
        job, trainer, most = self.job, self.trainer, self.budget.slice_steps
        # A run that may be stopped is cut at its evaluations, so that its judge is asked at each.
        if job.judge is not None:
            every = trainer.config.eval_every
            most = min(most, every - trainer.step % every)
        trainer.advance(self.budget.next_slice(trainer, job.planned.seconds_per_step, most))
        return self._look()

    def _look(self) -> schema.Run | None:
        """Evaluate a run whose clock ended it between two evaluations, judge, and record one that is over."""
        job, trainer, key = self.job, self.trainer, self.job.quality.key
        share, row = self.budget.share(trainer), trainer.last_metrics
        evaluated = row.get("step") == trainer.step and key in row
        rows: list[dict[str, Any]] = []
        # By the clock a run ends between two evaluations; its figure is that of its last weights.
        if share == 1 and not evaluated:
            row, evaluated = {**spent_by(trainer), **trainer.evaluate()}, True
            rows.append(row)
        if share == 1:
            trainer.save()
        if evaluated and (job.searched or share == 1) and (row[key] is None or not math.isfinite(row[key])):
            note = f"{job.quality.metric} is not finite after {trainer.step} steps"
            return lost_run(job, "diverged", note, trainer)
        stops = evaluated and job.judge is not None and job.judge(share, row[key])
        if not stops and share < 1:
            return None
        rows = read_metrics(job.folder) + rows
        if share < 1:
            return record_run(job, "pruned", rows, spent_by(trainer), trainer.decisions.why)
        figures = None
        if not job.searched:
            # While the weights are in memory: reading them back for every run would take longer than the figures.
            figures = trainer.engine.with_model_at_rest(lambda model: job.run.kind.figures(job.run, job.data, model))
        return record_run(job, "finished", rows, spent_by(trainer), trainer.decisions.why, figures=figures)

    def show_in(self, line: Line) -> None:
        """Note in a line how far the run is."""
        trainer, row = self.trainer, self.trainer.last_metrics
        line.status = "training"
        line.loss = row.get("loss", line.loss)
        line.val_loss = row.get("val_loss", line.val_loss)
        line.tokens_per_second = trainer.tokens / trainer.seconds if trainer.seconds else None
        line.part = self.budget.share(trainer)


def _open(job: Job) -> Trainer:
    """Open the trainer of a run, which goes on where its folder has a checkpoint."""
    task, resume = job.run.kind.make_task(job.run, job.data), (job.folder / CONFIG).exists()
    try:
        return open_trainer(job.run, task, job.folder, resume=resume)
    except InputError as error:
        if not (resume and job.searched) or is_of_the_machine(error):
            raise
        # A search's trial is one of many and soon made again; a comparison's run is never taken away.
        shutil.rmtree(job.folder)
        return open_trainer(job.run, job.run.kind.make_task(job.run, job.data), job.folder, resume=False)
