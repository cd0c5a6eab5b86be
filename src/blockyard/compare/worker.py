"""Run in a process of its own: trains a share of a comparison's runs, for `--workers`.

Reads one line of JSON from standard input, {"budget", "jobs"}, trains the jobs in turns, and writes how far they are to
standard output, a JSON line each now and then. When standard input ends, whoever started it is gone: it saves and
stops.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from blockyard.compare.live import Line
from blockyard.compare.processes import report, work_as_asked


class Reporter:
    """A board whose reader is the process that started this one."""

    def show(self, lines: list[Line], *, now: bool = False) -> None:
        report({"lines": [asdict(line) for line in lines if line.status != "waiting"]})

    def say(self, text: str) -> None:
        report({"say": text})

    def close(self) -> None:
        return


def work(request: dict[str, Any]) -> None:
    """Train the runs that are asked for."""
    import torch

    from blockyard.compare.budget import Budget
    from blockyard.compare.jobs import Job
    from blockyard.compare.plan import Planned
    from blockyard.compare.runs import wait_for_orphans
    from blockyard.compare.turns import train_all
    from blockyard.registry.plugins import load_plugins
    from blockyard.tasks.run import DataCache
    from blockyard.tasks.settings import resolve

    torch.set_num_threads(request["threads"])
    cache, jobs = DataCache(), dict[int, list[Job]]()
    for job in request["jobs"]:
        load_plugins(job["groups"].get("plugins") or (), here=True)
        run = resolve(job["groups"])
        run = replace(run, model=replace(run.model, **job["fitted"]))
        planned = Planned(job["name"], run.model, job["match"], run.train.steps, job["seconds_per_step"])
        place, data = Path(job["folder"]), cache.load(run)
        jobs.setdefault(job["seed"], []).append(Job(planned, job["seed"], place, run, data, job["searched"]))
    # A worker that is begun again elsewhere may come before the one that was cut off has saved and stopped.
    wait_for_orphans(jobs, Reporter())
    train_all(jobs, Budget(**request["budget"]), Reporter())


if __name__ == "__main__":
    raise SystemExit(work_as_asked(work))
