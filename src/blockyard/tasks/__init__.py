"""What a model is trained for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.tasks.kind import Quality as Quality
    from blockyard.tasks.kind import Run as Run
    from blockyard.tasks.kind import TaskData as TaskData
    from blockyard.tasks.kind import TaskKind as TaskKind
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
            "kind": "Quality Run TaskData TaskKind register_task task_kind task_names",
            "run": "Trained load_run read_run train",
            "settings": "resolve",
        },
    )
