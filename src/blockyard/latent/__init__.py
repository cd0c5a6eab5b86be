"""Latent attention (MLA)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.latent.attention import LatentAttention as LatentAttention
    from blockyard.latent.attention import absorbing_pays as absorbing_pays
else:
    __all__ = exports(
        __name__,
        {
            "attention": "LatentAttention absorbing_pays",
        },
    )
