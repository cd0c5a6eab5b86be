"""Run in a process of its own: makes trials of a search, or a share of its finals, for `--workers`.

Trials are claimed from the journal that all processes share; whoever started this one reads there how far they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from blockyard.compare.processes import ask_for_work, report
from blockyard.errors import InputError


def main() -> int:
    """Do what standard input asks for."""
    from blockyard.training.interrupt import Interrupted

    request = ask_for_work()
    try:
        work(request)
    except InputError as error:
        report({"error": str(error)})
        return 2
    except Interrupted as stop:
        return int(stop.code) if isinstance(stop.code, int) else 1
    return 0


def work(request: dict[str, Any]) -> None:
    """Make trials, or a share of the finals."""
    from dataclasses import asdict

    import torch

    from blockyard.registry.plugins import load_plugins
    from blockyard.tasks.settings import resolve
    from blockyard.training.interrupt import StopRequest
    from blockyard.tune.budgeted import Ended, Shelf
    from blockyard.tune.dimension import Dimension
    from blockyard.tune.finals import Final, candidates_of, fresh_seeds, jobs_of, make_finals
    from blockyard.tune.search import open_study
    from blockyard.tune.settings import TuneConfig
    from blockyard.tune.space import Space
    from blockyard.tune.trials import Search

    folder, config = Path(request["folder"]), TuneConfig(**request["config"])
    torch.set_num_threads(request["threads"])
    task, fixed, default = request["task"], request["fixed"], request["default"]
    load_plugins(fixed.get("plugins") or (), here=True)
    space = Space(task, tuple(Dimension.from_dict(found) for found in request["space"]))
    study = open_study(folder, config, request["better"], mend=False)
    shelf = Shelf()
    with StopRequest().listening() as stop:
        if request["phase"] == "search":
            run, data = shelf.fitted(resolve(request["first"], task))
            quality = run.kind.quality(data)
            Search(folder, space, fixed, config, study, quality, shelf, stop, lambda: None).run(request["share"])
            return
        candidates = candidates_of(study, space, fixed, config, default)
        jobs = jobs_of(candidates, fresh_seeds(candidates, task, config))

        def watch(job: Final, part: int, value: float | None, ended: Ended | None) -> None:
            report({"final": [jobs.index(job), part, value, asdict(ended) if ended else None]})

        make_finals([jobs[number] for number in request["share"]], folder, task, config, shelf, stop, watch)


if __name__ == "__main__":
    raise SystemExit(main())
