"""A run of a comparison: what it needs, what was kept of it, and the record that is made when it ends.

A run ends once: finished, pruned by a search, diverged, failed or killed. Its record is written into its own folder, so
what has ended is never trained again, whoever asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from blockyard.compare.live import Line
from blockyard.compare.plan import Planned, folder_of, run_of
from blockyard.compare.results import RESULT, curve, expert_loads, read_metrics, read_result, write_result
from blockyard.compare.settings import CompareConfig
from blockyard.errors import InputError
from blockyard.files import plain, without_nan
from blockyard.registry.plugins import load_plugins
from blockyard.report import schema
from blockyard.tasks.kind import Quality, Run
from blockyard.tasks.meaning import with_older
from blockyard.tasks.run import DataCache
from blockyard.tasks.settings import as_groups, resolve
from blockyard.training.folder import CONFIG, read_config
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
    # By name and seed, as folders are: a job is told by what it trains, not by when.
    def key(self) -> Key:
        return self.planned.name, self.seed

    @property
    def quality(self) -> Quality:
        return self.run.kind.quality(self.data)


def jobs_of(
    plan: Sequence[Planned], base: Run[Any, Any], seeds: int, config: CompareConfig, out: Path, data: Any
) -> dict[int, list[Job]]:
    """List the runs of these choices by seed, so many from the recipe's on."""
    # From the recipe's seed on, so that one choice trained alone with it is the comparison's first run.
    first = base.train.seed
    return {
        seed: [Job(p, seed, folder_of(out, p.name, seed), run_of(p, base, config, seed), data) for p in plan]
        for seed in range(first, first + seeds)
    }


def lines_of(jobs: Mapping[int, list[Job]]) -> dict[Key, Line]:
    """Make a line for every run."""
    return {j.key: Line(j.planned.name, j.seed) for group in jobs.values() for j in group}


def described(job: Job, out: Path | None = None) -> dict[str, Any]:
    """Return a run as plain data, for a process that makes it; its folder as it is from `out`, or in full."""
    return {
        "name": job.planned.name,
        "seed": job.seed,
        "folder": str(job.folder.absolute() if out is None else job.folder.relative_to(out)),
        # As option groups, which is what a run is everywhere: on the command line, in its folder, in a worker.
        "groups": as_groups(job.run),
        "fitted": {name: getattr(job.run.model, name) for name in job.run.kind.from_data},
        "match": job.planned.match,
        "seconds_per_step": job.planned.seconds_per_step,
        "searched": job.searched,
    }


def job_from(found: Mapping[str, Any], cache: DataCache, out: Path = Path()) -> Job:
    """Return the run that was `described`, with its data.

    Raises:
        InputError: for a plug-in or data that are not here.
    """
    load_plugins(found["groups"].get("plugins") or (), here=True)
    run = resolve(found["groups"])
    run = replace(run, model=replace(run.model, **found["fitted"]))
    planned = Planned(found["name"], run.model, found["match"], run.train.steps, found["seconds_per_step"])
    return Job(planned, found["seed"], out / found["folder"], run, cache.load(run), found["searched"])


def kept_results(
    jobs: Mapping[int, list[Job]], lines: Mapping[Key, Line], *, again: bool = True
) -> dict[Key, schema.Run]:
    """Return the runs that have ended before, by (choice, seed); with `again` those that failed are none of them."""
    results: dict[Key, schema.Run] = {}
    for group in jobs.values():
        for job in group:
            kept = read_result(job.folder)
            if again and kept is not None and kept["status"] in TRIED_AGAIN:
                # Its author may have mended it, or the machine have more memory today.
                (job.folder / RESULT).unlink(missing_ok=True)
                kept = None
            if kept is not None:
                _check_kept(job)
                results[job.key] = kept
                note_end(lines[job.key], kept, "kept")
    return results


def _check_kept(job: Job) -> None:
    """Refuse a run that ended with options of its model that come to something else than they do now."""
    # Only options that older versions could not name: all others are compared with the terms.
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


def note_end(line: Line, run: schema.Run, status: str) -> None:
    """Show in its line that a run has ended; `status` is the word for one that has finished."""
    line.part, line.status, line.val_loss = (
        1.0,
        status if run["status"] == "finished" else run["status"],
        run["final_loss"],
    )
    line.tokens_per_second = run["tokens"] / run["seconds"] if run["seconds"] else None


def lost_run(job: Job, status: str, note: str, trainer: Trainer | None = None) -> schema.Run:
    """Record a run that ended without a figure.

    Args:
        job: the run.
        status: one of `schema.LOST`.
        note: why, in a line.
        trainer: the run's; None when there is none any more: then what it spent is read from its metrics.
    """
    rows = read_metrics(job.folder)
    # A run that failed before its first step cost nothing that was counted.
    nothing = {"step": 0, "tokens": 0, "seconds": 0.0, "cpu_seconds": 0.0, "flops": 0}
    spent = spent_by(trainer) if trainer is not None else rows[-1] if rows else nothing
    why = trainer.decisions.why if trainer is not None else ()
    return record_run(job, status, rows, spent, why, note=note)


def spent_by(trainer: Trainer) -> dict[str, Any]:
    """Return what a run has spent, in the names of its metrics."""
    return {
        "step": trainer.step,
        "tokens": trainer.tokens,
        "seconds": trainer.seconds,
        "cpu_seconds": trainer.cpu_seconds,
        "flops": trainer.flops,
    }


def record_run(
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
        # Within the comparison: a report is moved with its folder, and names no path of a machine.
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
    # Where the loss ranks, its curve stands there already.
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
