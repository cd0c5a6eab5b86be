"""Trained models beside a comparison's choices, for `--beside`: refused early, evaluated by their task at the end."""

from __future__ import annotations

from typing import Any

from blockyard.compare.settings import CompareConfig
from blockyard.errors import InputError
from blockyard.tasks.kind import Run, TaskKind
from blockyard.tasks.run import read_run


def check_beside(config: CompareConfig, base: Run[Any, Any]) -> None:
    """Refuse folders to be shown beside the choices that hold no run of this task, before anything is trained."""
    for folder in config.beside or ():
        found = read_run(folder, plugins=base.plugins)
        if found.task != base.task:
            raise InputError(f"beside={folder!r} is a run of `train {found.task}`, not of `train {base.task}`")
    if config.beside and type(base.kind).beside is TaskKind.beside:
        raise InputError(f"beside={config.beside[0]!r}: runs of the task {base.task!r} cannot be shown beside others")
