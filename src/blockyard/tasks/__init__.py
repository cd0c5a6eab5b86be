"""Tasks: what a model is trained for. A task is data, a model, the figure that ranks, and its part of a report.

    option groups -> resolve -> a Run -> its kind's load_data, fit, make_task -> the training loop -> a run folder

    train({"model": {"d_model": 384}, "train": {"steps": 3000}}, "runs/mine", task="lm")
    model, assets, run = load_run("runs/mine")

`train`, `compare`, `tune`, resume, option groups and reports are written over this, for built-in tasks and yours alike.

Where to read, in this order:

    kind.py       TaskKind and @register_task; Run, everything that defines a run; Quality, the figure that ranks
    groups.py     the option groups of a task: of its two dataclasses, and of the blocks
    given.py      settings as Python, YAML and the command line give them: the one check, and the one merge
    settings.py   from option groups to a Run, and back
    meaning.py    what options mean that a run folder, written by an older version, leaves out
    run.py        train and load_run: whole runs
    sizes.py      whether a run fits into memory, asked before data are read

    lm/           language models            recall/    synthetic recall: what a mixer can look up
    classify/     classes of texts           signal/    modulations and symbols of radio signals
    price/        distributions of returns

Each has a file for its kind (lm/task.py), its data and model, and what it adds to a comparison (lm/report.py).

Three rules make resume exact and comparisons fair: a batch is a function of (seed, step), weights are a function of the
seed, validation data do not depend on the seed.

A task of your own: docs/tasks.md; what loads which code: docs/security.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.tasks.kind import ClassifyOptions as ClassifyOptions
    from blockyard.tasks.kind import Quality as Quality
    from blockyard.tasks.kind import Run as Run
    from blockyard.tasks.kind import TaskData as TaskData
    from blockyard.tasks.kind import TaskKind as TaskKind
    from blockyard.tasks.kind import likeliest as likeliest
    from blockyard.tasks.kind import register_task as register_task
    from blockyard.tasks.kind import task_kind as task_kind
    from blockyard.tasks.kind import task_names as task_names
    from blockyard.tasks.run import Trained as Trained
    from blockyard.tasks.run import load_run as load_run
    from blockyard.tasks.run import read_run as read_run
    from blockyard.tasks.run import train as train
    from blockyard.tasks.settings import resolve as resolve
else:
    __all__ = exports(
        __name__,
        {
            "kind": "ClassifyOptions Quality Run TaskData TaskKind likeliest register_task task_kind task_names",
            "run": "Trained load_run read_run train",
            "settings": "resolve",
        },
    )
