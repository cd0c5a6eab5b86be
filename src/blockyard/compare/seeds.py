"""How many seeds each choice has: as many as the terms say, or as many as the verdict needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blockyard.compare.jobs import jobs_of
from blockyard.compare.live import Board
from blockyard.compare.plan import Planned
from blockyard.compare.runs import train_jobs
from blockyard.compare.settings import CompareConfig
from blockyard.compare.sharing import Sharing
from blockyard.report import schema
from blockyard.report.ranking import plan_looks, still_open
from blockyard.tasks.kind import Run

Results = dict[tuple[str, int], schema.Run]


def train_seeds(
    plan: Sequence[Planned], config: CompareConfig, base: Run[Any, Any], data: Any, board: Board, out: Path
) -> tuple[Results, list[schema.Look] | None]:
    """Train every choice with its seeds; returns the runs by (choice, seed), and the looks where there were several.

    With `seeds: auto` all choices have a few; then those that are not shown to be worse than the best mean have more,
    as long as any of them is undecided and the terms allow (`report.ranking.plan_looks`).

    Raises:
        InputError: for what a worker could not do.
        Interrupted: after SIGTERM or SIGINT, when the runs in training have been saved.
    """
    # One look, planned beforehand: its error is the one that is stated.
    if config.seeds != "auto":
        jobs = jobs_of(plan, base, config.seeds, config, out, data)
        return train_jobs(jobs, config.budget, board, Sharing(out)), None
    results: Results = {}
    taken: list[schema.Look] = []
    open_ = list(plan)
    # The error is shared out over the looks before the first: looking until something shows would always show
    # something.
    for look in plan_looks(config.most_seeds):
        if taken:
            told = ", ".join(p.name for p in open_)
            board.say(f"undecided after {taken[-1]['seeds']} seeds: now {look['seeds']} of {told}")
        jobs = jobs_of(open_, base, look["seeds"], config, out, data)
        results |= train_jobs(jobs, config.budget, board, Sharing(out))
        taken.append(look)
        # The leader stays in as well: a comparison with it gains nothing from seeds on one side.
        names = still_open(_so_far(plan, config, base, data, results, taken))
        open_ = [p for p in plan if p.name in names]
        if not open_:
            break
    return results, taken


def _so_far(
    plan: Sequence[Planned],
    config: CompareConfig,
    base: Run[Any, Any],
    data: Any,
    results: Results,
    looks: list[schema.Look],
) -> schema.Report:
    """Return as much of a report as its comparisons rest on."""
    quality, ordered = base.kind.quality(data), sorted(results.items())
    found: Any = {
        "choices": [{"name": p.name, "runs": [run for (name, _), run in ordered if name == p.name]} for p in plan],
        "quality": {"better": quality.better, "margin": quality.margin},
        "settings": {"compare": {"margin": config.margin}},
        "looks": looks,
    }
    return found
