"""Trains runs in turns in this process, so that a slow hour of the machine falls on every choice alike.

All choices with one seed advance together, a slice of steps each; then the next seed. Where others have joined
(sharing.py), each takes the runs whose folders are free.
"""

from __future__ import annotations

import math
import shutil
import time
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
from blockyard.compare.results import read_metrics, read_result
from blockyard.compare.sharing import ORPHAN_SECONDS, POLL_SECONDS, Sharing
from blockyard.errors import InputError, InUse
from blockyard.report import schema
from blockyard.tasks.run import open_trainer
from blockyard.training.folder import CONFIG, LOCK, held
from blockyard.training.guard import NonFiniteError
from blockyard.training.interrupt import Interrupted, StopRequest
from blockyard.training.trainer import Trainer


def train_all(
    jobs: Mapping[int, list[Job]],
    budget: Budget,
    board: Board,
    sharing: Sharing | None = None,
    *,
    again: bool = True,
) -> dict[Key, schema.Run]:
    """Train what is missing; returns every run by (choice, seed).

    Args:
        jobs: the runs, by seed.
        budget: what each may spend.
        board: shows them.
        sharing: where others make some of them; None where nobody does.
        again: make runs again that failed before.

    Raises:
        InputError: for a run that cannot be made, or that is held by somebody who has not joined.
        Interrupted: after SIGTERM or SIGINT, when the runs in training have been saved.
    """
    lines = lines_of(jobs)
    # Asked of the folders alone, so that it does not matter which process made a run, or when.
    results = kept_results(jobs, lines, again=again)
    board.show(list(lines.values()), now=True)
    left = [job for group in jobs.values() for job in group if job.key not in results]
    if again and left and sharing is not None:
        sharing.offer(left, budget)
    # One for all seeds: a signal that comes as the last run of a seed ends is for the next ones, too.
    with StopRequest().listening() as stop:
        alone = time.monotonic() + ORPHAN_SECONDS
        while True:
            took = False
            for group in jobs.values():
                free = [job for job in group if job.key not in results]
                if sharing is not None:
                    free = _free(free, results, lines, board)
                for job, run in train_in_turns(free, budget, board, lines, stop, sharing):
                    results[job.key], took = run, True
                if stop.signal is not None:
                    raise Interrupted(stop.signal, STOPPED)
            left = [job for job in left if job.key not in results]
            if not left:
                return results
            # What is left is others' now; what they lose is free again.
            assert sharing is not None
            if took or sharing.joined():
                alone = time.monotonic() + ORPHAN_SECONDS
            elif time.monotonic() > alone:
                raise InUse(f"run folder {left[0].folder} is in use by another process")
            board.show(list(lines.values()))
            time.sleep(POLL_SECONDS)


def _free(jobs: Sequence[Job], results: dict[Key, schema.Run], lines: Mapping[Key, Line], board: Board) -> list[Job]:
    """Return the runs that nobody holds; those that others have ended become results."""
    found = []
    for job in jobs:
        run = read_result(job.folder)
        if run is not None:
            results[job.key] = run
            note_end(lines[job.key], run, "finished")
            board.say(f"{end_line(job, run, job.quality)} (by one who joined)")
        elif held(job.folder / LOCK):
            lines[job.key].status = "elsewhere"
        else:
            found.append(job)
    return found


def train_in_turns(
    jobs: Sequence[Job],
    budget: Budget,
    board: Board,
    lines: Mapping[Key, Line],
    stop: StopRequest,
    sharing: Sharing | None = None,
) -> Iterator[tuple[Job, schema.Run]]:
    """Train runs, a slice of steps each in turn; yields each with its record when it ends.

    With `sharing`, runs that another process took first are left to it, and some are saved and let go for those who
    wait for one; neither is yielded.

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
                live = LiveRun(job, budget)
            except Exception as error:
                if sharing is not None and isinstance(error, InUse):
                    continue
                if is_of_the_machine(error) or isinstance(error, InputError):
                    raise
                # A block that cannot be built is a result: the others are trained, and the report says what was wrong.
                lost = lost_run(job, "failed", keep_failure(error, job.folder))
                tell(job, lost)
                yield job, lost
                continue
            open_runs.callback(live.trainer.close)
            # Whoever had it may have ended it between the look and the lock.
            if sharing is not None and read_result(job.folder) is not None:
                live.trainer.close()
            else:
                waiting.append(live)
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
            for _ in range(0 if sharing is None else sharing.to_give(len(waiting))):
                given = waiting.pop()
                given.trainer.save()
                given.trainer.close()
                lines[given.job.key].status = "elsewhere"
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
        if not resume and (job.folder / CONFIG).exists():
            # Another process began it since.
            raise InUse(str(error)) from error
        if not (resume and job.searched) or is_of_the_machine(error):
            raise
        # A search's trial is one of many and soon made again; a comparison's run is never taken away.
        shutil.rmtree(job.folder)
        return open_trainer(job.run, job.run.kind.make_task(job.run, job.data), job.folder, resume=False)
