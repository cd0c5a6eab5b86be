"""The search: the best options of a task, each trial a real run of the training engine at one budget.

    draw (Optuna, a function of the seed, the trial's number and what ended before) -> train -> judge at even parts of
    the budget -> stop the poor -> the best few and the default again, with seeds not seen by the search -> verdict

The best of many is lucky: what the report claims rests on the fresh seeds alone.

Where to read, in this order:

    run.py         tune: the call
    settings.py    TuneConfig: the terms; space.py, dimension.py: what is searched
    session.py     from the first trial to the report
    search.py      Optuna's part: who draws, who stops; storage.py: in a database, for several machines (joining.py)
    plan.py        SearchSpec: what was asked for; a run of a search as a job (compare/jobs.py), which compare/ trains
    trials.py      draw, train, judge, tell
    finals.py      the best trials as choices of a comparison with fresh seeds; verdict.py: what that allows one to say
    importance.py  how much each option mattered, roughly
    record.py      tune.json (schema.py); report.py, charts.py, output.py: what is written of it
    the rest       what is known before training (start.py), the table of trials (board.py), their workers (worker.py)

Use it before comparing blocks that want other rates; keep data that nothing was chosen by for a last word.

Spaces, budgets, pruning and what to beware of: docs/tuning.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.tune.run import tune as tune
    from blockyard.tune.settings import TuneConfig as TuneConfig
else:
    __all__ = exports(
        __name__,
        {
            "run": "tune",
            "settings": "TuneConfig",
        },
    )
