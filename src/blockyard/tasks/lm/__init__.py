"""Language modelling."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.tasks.lm.task import LanguageModelling as LanguageModelling
    from blockyard.tasks.lm.task import LMTask as LMTask
else:
    __all__ = exports(
        __name__,
        {
            "task": "LMTask LanguageModelling",
        },
    )
