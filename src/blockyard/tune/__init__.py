"""The search for the best options of a task."""

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
