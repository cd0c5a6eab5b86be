"""Synthetic recall: sequences that ask a mixer for what stood earlier; minutes where language modelling takes hours.

    mqar       k1 v1 k2 v2 … noise k2 → v2 … k1 → v1     the value, at each key's second coming
    induction, copy, selective_copy                      what followed a marker; a string again
    lag        the token `size` positions earlier        what a convolution can do
    random     nothing: a causal model cannot get below ln V, and one that does sees the future

Rows are functions of (seed, step), drawn from the raw bits of Philox: the same on every machine.

Files, in reading order:

    config.py   RecallConfig: which task, how long, how hard
    data.py     the rows, with the positions of the answers marked
    task.py     Recall, the kind; RecallTask: the loss over the answers, the share of right ones
    report.py   what a comparison adds: accuracy over the size of the task, or the floor ln V

Use it to see whether a mixer can look things up, and how many attention layers mend one that cannot. It says nothing of
quality on text, and recall emerges suddenly: give it the budget that the reference needed twice over.

The tasks and figures: docs/recall.md.
"""

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
