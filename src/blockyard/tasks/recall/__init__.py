"""Synthetic recall."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.tasks.recall.config import RecallConfig as RecallConfig
    from blockyard.tasks.recall.data import RecallData as RecallData
    from blockyard.tasks.recall.data import make_rows as make_rows
    from blockyard.tasks.recall.task import Recall as Recall
    from blockyard.tasks.recall.task import RecallTask as RecallTask
else:
    __all__ = exports(
        __name__,
        {
            "config": "RecallConfig",
            "data": "RecallData make_rows",
            "task": "Recall RecallTask",
        },
    )
