"""Mixture of experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.moe.mixture import MoE as MoE
    from blockyard.moe.weights import from_hf as from_hf
    from blockyard.moe.weights import to_hf as to_hf
else:
    __all__ = exports(
        __name__,
        {
            "mixture": "MoE",
            "weights": "from_hf to_hf",
        },
    )
