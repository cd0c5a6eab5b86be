"""Run in a process of its own: trains a share of a comparison's runs, for `--workers`.

Reads one line of JSON from standard input, {"budget", "jobs"}, trains the jobs in turns, and writes how far they are to
standard output, a JSON line each now and then. When standard input ends, whoever started it is gone: it saves and
stops.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from blockyard.compare.live import Line
from blockyard.compare.processes import ask_for_work, report
from blockyard.errors import InputError


class Reporter:
    """A board whose reader is the process that started this one."""

    def show(self, lines: list[Line], *, now: bool = False) -> None:
        report({"lines": [asdict(line) for line in lines if line.status != "waiting"]})

    def say(self, text: str) -> None:
        report({"say": text})

    def fail(self, text: str) -> None:
        """Tell an error that the user can put right."""
        report({"error": text})

    def close(self) -> None:
        return


def main() -> int:
    """Train what standard input asks for."""
    import torch

    from blockyard.compare.budget import Budget
    from blockyard.compare.plan import Planned
    from blockyard.compare.runs import Job, train_all
    from blockyard.registry.plugins import load_plugins
    from blockyard.tasks.run import DataCache
    from blockyard.tasks.settings import resolve
    from blockyard.training.interrupt import Interrupted

    request = ask_for_work()
    reporter = Reporter()
    try:
        budget, cache = Budget(**request["budget"]), DataCache()
        torch.set_num_threads(request["threads"])
        jobs: dict[int, list[Job]] = {}
        for job in request["jobs"]:
            load_plugins(job["groups"].get("plugins") or (), here=True)
            run = resolve(job["groups"])
            run = replace(run, model=replace(run.model, **job["fitted"]))
            planned = Planned(job["name"], run.model, job["match"], run.train.steps, job["seconds_per_step"])
            place, data = Path(job["folder"]), cache.load(run)
            jobs.setdefault(job["seed"], []).append(Job(planned, job["seed"], place, run, data, job["searched"]))
        train_all(jobs, budget, reporter)
    except InputError as error:
        reporter.fail(str(error))
        return 2
    except Interrupted as stop:
        return int(stop.code) if isinstance(stop.code, int) else 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
