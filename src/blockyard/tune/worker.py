"""Run in a process of its own: makes trials of a search, for `--workers`.

Trials are claimed from the journal that all processes share; whoever started this one reads there how far they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from blockyard.compare.processes import work_as_asked


def work(request: dict[str, Any]) -> None:
    """Go on with trials, and begin new ones until there are enough."""
    import torch

    from blockyard.registry.plugins import load_plugins
    from blockyard.tasks.run import DataCache
    from blockyard.tasks.settings import resolve
    from blockyard.training.interrupt import StopRequest
    from blockyard.tune.dimension import Dimension
    from blockyard.tune.plan import SearchSpec
    from blockyard.tune.search import open_study
    from blockyard.tune.settings import TuneConfig
    from blockyard.tune.space import Space
    from blockyard.tune.storage import reaching
    from blockyard.tune.trials import Search

    out, config, cache = Path(request["folder"]), TuneConfig(**request["config"]), DataCache()
    torch.set_num_threads(request["threads"])
    task, fixed = request["task"], request["fixed"]
    load_plugins(fixed.get("plugins") or (), here=True)
    space = Space(task, tuple(Dimension.from_dict(found) for found in request["space"]))
    study = open_study(out, config, request["better"], mend=False, terms=request["terms"])
    run, data = cache.fitted(resolve(request["first"], task))
    spec = SearchSpec(task, run.kind.quality(data), config, space, fixed, None, out)
    with StopRequest().listening() as stop, reaching(config.storage):
        Search(spec, study, cache, stop, lambda: None, request["owner"]).run(request["share"])


if __name__ == "__main__":
    raise SystemExit(work_as_asked(work))
