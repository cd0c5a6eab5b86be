"""Block choices compared at an equal budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.compare.compare import compare as compare
    from blockyard.compare.settings import CompareConfig as CompareConfig
else:
    __all__ = exports(
        __name__,
        {
            "compare": "compare",
            "settings": "CompareConfig",
        },
    )
