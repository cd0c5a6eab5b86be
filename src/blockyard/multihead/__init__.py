"""The interface of `nn.MultiheadAttention` over any mixer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.multihead.attention import MultiheadAttention as MultiheadAttention
else:
    __all__ = exports(
        __name__,
        {
            "attention": "MultiheadAttention",
        },
    )
