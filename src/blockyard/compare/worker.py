"""Run in a process of its own: trains a share of a comparison's runs, for `--workers`.

Reads one line of JSON from standard input, {"budget", "jobs"}, trains the jobs in turns, and writes how far they are to
standard output, a JSON line each now and then. When standard input ends, whoever started it is gone: it saves and
stops.
"""

from __future__ import annotations

from dataclasses import asdict
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
    from blockyard.compare.jobs import Job, job_from
    from blockyard.compare.runs import wait_for_orphans
    from blockyard.compare.sharing import Sharing
    from blockyard.compare.turns import train_all
    from blockyard.tasks.run import DataCache

    torch.set_num_threads(request["threads"])
    cache, jobs = DataCache(), dict[int, list[Job]]()
    for found in request["jobs"]:
        jobs.setdefault(found["seed"], []).append(job_from(found, cache))
    sharing = None if request["out"] is None else Sharing(Path(request["out"]))
    # A worker that is begun again elsewhere may come before the one that was cut off has saved and stopped.
    wait_for_orphans(jobs, Reporter(), sharing)
    # What failed was cleared away by who asks; what fails since then has failed.
    train_all(jobs, Budget(**request["budget"]), Reporter(), sharing, again=False)


if __name__ == "__main__":
    raise SystemExit(work_as_asked(work))
