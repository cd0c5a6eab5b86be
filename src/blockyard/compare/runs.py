"""Trains the runs of a comparison in turns, so that a slow hour of the machine falls on every choice alike.

All choices with one seed advance together, a slice of steps each; then the next seed. Every run is an ordinary run
folder with exact resume, so a comparison killed at any moment goes on where its last checkpoints are. With `--workers`
several processes take a share each: a run is the same in whichever process it is made.
"""

from __future__ import annotations

import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from blockyard.compare.budget import Budget
from blockyard.compare.failures import is_of_the_machine, keep_failure
from blockyard.compare.live import Board, Line
from blockyard.compare.plan import Planned, folder_of, run_of
from blockyard.compare.processes import STOPPED, Workers, signal_name
from blockyard.compare.results import RESULT, curve, expert_loads, read_metrics, read_result, write_result
from blockyard.compare.settings import CompareConfig
from blockyard.errors import InputError
from blockyard.files import plain, without_nan
from blockyard.report import schema
from blockyard.tasks.kind import Quality, Run
from blockyard.tasks.meaning import with_older
from blockyard.tasks.run import open_trainer
from blockyard.tasks.settings import as_groups
from blockyard.training.folder import CONFIG, LOCK, held, read_config
from blockyard.training.guard import NonFiniteError
from blockyard.training.interrupt import Interrupted, StopRequest
from blockyard.training.trainer import Trainer

# Runs that the same command makes again: what ended them was no property of the numbers.
TRIED_AGAIN = ("failed", "killed")
Key = tuple[str, int]


@dataclass(frozen=True)
class Job:
    """One run: a planned choice with one seed, in its folder.

    Args:
        planned: the choice.
        seed: its seed.
        folder: its run folder.
        run: its options, fitted to its data.
        data: its task's data.
        searched: whether it is of a search: its task's further figures, which may look at a test part, are not taken,
            and where it cannot be gone on from it is made again.
        judge: told the part of the budget that is spent (0 to 1) and the figure at every evaluation, after a kill at
            some of them again; says whether the run shall be stopped there.
    """

    planned: Planned
    seed: int
    folder: Path
    run: Run[Any, Any]
    data: Any
    searched: bool = False
    judge: Callable[[float, float], bool] | None = None

    @property
    def key(self) -> Key:
        return self.planned.name, self.seed

    @property
    def quality(self) -> Quality:
        return self.run.kind.quality(self.data)


def jobs_of(
    plan: Sequence[Planned], base: Run[Any, Any], seeds: int, config: CompareConfig, out: Path, data: Any
) -> dict[int, list[Job]]:
    """List the runs of these choices by seed, so many from the recipe's on."""
    first = base.train.seed
    return {
        seed: [Job(p, seed, folder_of(out, p.name, seed), run_of(p, base, config, seed), data) for p in plan]
        for seed in range(first, first + seeds)
    }


def train_jobs(jobs: Mapping[int, list[Job]], budget: Budget, board: Board) -> dict[Key, schema.Run]:
    """Train what is missing, in this process or by the workers that the budget names, once nobody else holds a run;
    returns every run by (choice, seed).

    Raises:
        InputError: for what a worker could not do, when the others have been stopped and saved.
        Interrupted: after SIGTERM or SIGINT, when the runs in training have been saved.
    """
    wait_for_orphans(jobs, board)
    return (train_spread if budget.workers > 1 else train_all)(jobs, budget, board)


def train_all(jobs: Mapping[int, list[Job]], budget: Budget, board: Board) -> dict[Key, schema.Run]:
    """Train what is missing; returns every run by (choice, seed).

    Raises:
        Interrupted: after SIGTERM or SIGINT, when the runs in training have been saved.
    """
    lines = lines_of(jobs)
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


def lines_of(jobs: Mapping[int, list[Job]]) -> dict[Key, Line]:
    """Make a line for every run."""
    return {j.key: Line(j.planned.name, j.seed) for group in jobs.values() for j in group}


def kept_results(jobs: Mapping[int, list[Job]], lines: Mapping[Key, Line]) -> dict[Key, schema.Run]:
    """The runs that have ended before, by (choice, seed)."""
    results: dict[Key, schema.Run] = {}
    for group in jobs.values():
        for job in group:
            kept = read_result(job.folder)
            if kept is not None and kept["status"] in TRIED_AGAIN:
                # Its author may have mended it, or the machine have more memory today.
                (job.folder / RESULT).unlink(missing_ok=True)
                kept = None
            if kept is not None:
                _check_kept(job)
                results[job.key] = kept
                _note(lines[job.key], kept, "kept")
    return results


def _check_kept(job: Job) -> None:
    """Refuse a run that ended with options of its model that come to something else than they do now."""
    model: Any = job.run.model
    if not model.older or not (job.folder / CONFIG).is_file():
        return
    before = with_older(read_config(job.folder)).get("model") or {}
    had = replace(model, **{name: before[name] for name in model.older if name in before})
    for name, value in model.decided.items():
        if had.decided[name] != value:
            raise InputError(
                f"{job.folder} was trained with model.{name}={had.decided[name]}, and {value} is asked for now: give "
                f"--model.{name} {had.decided[name]}, or use another --out"
            )


def _note(line: Line, run: schema.Run, status: str) -> None:
    line.part, line.status, line.val_loss = (
        1.0,
        status if run["status"] == "finished" else run["status"],
        run["final_loss"],
    )
    line.tokens_per_second = run["tokens"] / run["seconds"] if run["seconds"] else None


def train_in_turns(
    jobs: Sequence[Job], budget: Budget, board: Board, lines: Mapping[Key, Line], stop: StopRequest
) -> Iterator[tuple[Job, schema.Run]]:
    """Train runs, a slice of steps each in turn; yields each with its record when it ends.

    Raises:
        InputError: for a run that cannot be made.
        Interrupted: when `stop` is asked for and the runs in training have been saved.
    """

    def tell(job: Job, ended: schema.Run) -> None:
        _note(lines[job.key], ended, "finished")
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
                lost = lost_run(job, "failed", keep_failure(error, job.folder))
                tell(job, lost)
                yield job, lost
        while waiting:
            # There and back again: the first in one round is the last in the next.
            for live in list(waiting):
                ended = live.turn()
                live.show_in(lines[live.job.key])
                if ended is not None:
                    live.trainer.close()
                    waiting.remove(live)
                    tell(live.job, ended)
                    yield live.job, ended
                board.show(list(lines.values()), now=ended is not None)
                if stop.signal is not None and waiting:
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
        if share == 1 and not evaluated:
            row, evaluated = {**_spent(trainer), **trainer.evaluate()}, True
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
            return _record(job, "pruned", rows, _spent(trainer), trainer.decisions.why)
        figures = None
        if not job.searched:
            figures = trainer.engine.with_model_at_rest(lambda model: job.run.kind.figures(job.run, job.data, model))
        return _record(job, "finished", rows, _spent(trainer), trainer.decisions.why, figures=figures)

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
        shutil.rmtree(job.folder)
        return open_trainer(job.run, job.run.kind.make_task(job.run, job.data), job.folder, resume=False)


def lost_run(job: Job, status: str, note: str, trainer: Trainer | None = None) -> schema.Run:
    """Record a run that ended without a figure.

    Args:
        job: the run.
        status: one of `schema.LOST`.
        note: why, in a line.
        trainer: the run's; None when there is none any more: then what it spent is read from its metrics.
    """
    rows = read_metrics(job.folder)
    nothing = {"step": 0, "tokens": 0, "seconds": 0.0, "cpu_seconds": 0.0, "flops": 0}
    spent = _spent(trainer) if trainer is not None else rows[-1] if rows else nothing
    why = trainer.decisions.why if trainer is not None else ()
    return _record(job, status, rows, spent, why, note=note)


def _spent(trainer: Trainer) -> dict[str, Any]:
    return {
        "step": trainer.step,
        "tokens": trainer.tokens,
        "seconds": trainer.seconds,
        "cpu_seconds": trainer.cpu_seconds,
        "flops": trainer.flops,
    }


def _record(
    job: Job,
    status: str,
    rows: list[dict[str, Any]],
    spent: Mapping[str, Any],
    decisions: tuple[str, ...],
    *,
    note: str = "",
    figures: Mapping[str, Any] | None = None,
) -> schema.Run:
    """Make and keep the record of a run that has ended."""
    evaluated = [row["val_loss"] for row in rows if row.get("val_loss") is not None]
    ended, quality = status == "finished" and bool(evaluated), job.quality
    run: schema.Run = {
        "seed": job.seed,
        "status": status,
        "folder": str(Path(*job.folder.parts[-3:])),
        "steps": spent["step"],
        "tokens": spent["tokens"],
        "seconds": spent["seconds"],
        "cpu_seconds": spent["cpu_seconds"],
        "flops": float(spent["flops"]),
        "final_loss": evaluated[-1] if ended else None,
        "best_loss": min(evaluated) if ended else None,
        "note": note,
        "train": curve(rows, "loss"),
        "validation": curve(rows, "val_loss"),
    }
    if quality.key != "val_loss":
        found = [row[quality.key] for row in rows if row.get(quality.key) is not None]
        run["final_quality"] = found[-1] if ended and found else None
        run["best_quality"] = (min if quality.better == "lower" else max)(found) if ended and found else None
        run["quality"] = curve(rows, quality.key)
    if figures:
        run["figures"] = plain(figures)
    loads = expert_loads(rows)
    if loads:
        run["load"] = loads
    run = without_nan(run)
    write_result(job.folder, run, decisions)
    return run


def end_line(job: Job, run: schema.Run, quality: Quality) -> str:
    """Word how a run ended."""
    name = f"{job.planned.name} seed {job.seed}"
    if run["final_loss"] is None:
        return f"{name}: {run['status']}" + (f"; {run['note']}" if run["note"] else "")
    figures = f"val_loss {run['final_loss']:.4f}"
    if run.get("final_quality") is not None:
        figures += f", {quality.metric} {run['final_quality']:.4f}"
    return f"{name}: {figures} after {run['steps']} steps, {run['seconds']:.1f} s"


POLL_SECONDS = 0.2
# How long a worker whose starter was killed may take to save and stop: a slice of steps and an evaluation.
ORPHAN_SECONDS = 120.0


def train_spread(jobs: Mapping[int, list[Job]], budget: Budget, board: Board) -> dict[Key, schema.Run]:
    """Train what is missing with `budget.workers` processes; returns every run by (choice, seed).

    The runs of a worker that is killed are begun again, each by itself; one that takes its process with it once more is
    recorded as killed.

    Raises:
        InputError: for what a worker could not do, when the others have been stopped and saved.
        Interrupted: after SIGTERM or SIGINT, when the runs in training have been saved.
    """
    lines = lines_of(jobs)
    results = kept_results(jobs, lines)
    board.show(list(lines.values()), now=True)
    missing = [job for group in jobs.values() for job in group if job.key not in results]
    if missing:
        shares = [missing[i :: budget.workers] for i in range(min(budget.workers, len(missing)))]

        def heard(message: dict[str, Any]) -> None:
            for found in message.get("lines", []):
                line = lines[(found["name"], found["seed"])]
                for name, value in found.items():
                    setattr(line, name, value)
            if "say" in message:
                board.say(message["say"])
            board.show(list(lines.values()))

        deaths: Counter[Key] = Counter()

        def lost(request: Mapping[str, Any], number: int) -> list[dict[str, Any]]:
            keys = {(job["name"], job["seed"]) for job in request["jobs"]}
            left = [j for j in missing if j.key in keys and read_result(j.folder) is None]
            again = []
            for job in left:
                deaths[job.key] += 1
                if deaths[job.key] > 1 and len(left) == 1:
                    why = f"its process died of {signal_name(number)} twice, the second time by itself"
                    killed = lost_run(job, "killed", why)
                    lines[job.key].status = killed["status"]
                    board.say(end_line(job, killed, job.quality))
                else:
                    again.append([job])
            if again:
                board.say(f"a worker died of {signal_name(number)}; begun again: {_named(again)}")
            return _requests(again, budget, request["threads"])

        Workers("blockyard.compare.worker", _requests(shares, budget), heard, lost=lost).wait()
    for job in missing:
        run = read_result(job.folder)
        assert run is not None, f"{job.folder} holds no result"
        results[job.key] = run
    return results


def wait_for_orphans(jobs: Mapping[int, list[Job]], board: Board) -> None:
    """Wait until nobody holds a run any more: workers whose starter was killed save first, and then stop.

    After two minutes it is somebody else, as the run's folder will say.
    """
    locks = [job.folder / LOCK for group in jobs.values() for job in group]
    until, told = time.monotonic() + ORPHAN_SECONDS, False
    while any(map(held, locks)) and time.monotonic() < until:
        if not told:
            board.say("waiting for a worker of an earlier comparison to save and stop")
            told = True
        time.sleep(POLL_SECONDS)


def _named(shares: Sequence[Sequence[Job]]) -> str:
    return ", ".join(f"{job.planned.name} seed {job.seed}" for share in shares for job in share)


def _requests(shares: Sequence[Sequence[Job]], budget: Budget, threads: int | None = None) -> list[dict[str, Any]]:
    if not shares:
        return []
    # Runs that are to be compared by the clock share the cores evenly; the option, when given, has the last word.
    threads = threads or shares[0][0].run.train.threads or max(1, torch.get_num_threads() // len(shares))
    return [{"budget": asdict(budget), "threads": threads, "jobs": [_described(job) for job in s]} for s in shares]


def _described(job: Job) -> dict[str, Any]:
    return {
        "name": job.planned.name,
        "seed": job.seed,
        "folder": str(job.folder),
        "groups": as_groups(job.run),
        "fitted": {name: getattr(job.run.model, name) for name in job.run.kind.from_data},
        "match": job.planned.match,
        "seconds_per_step": job.planned.seconds_per_step,
        "searched": job.searched,
    }
