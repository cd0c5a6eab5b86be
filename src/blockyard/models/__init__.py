"""Models built from blocks: embed, blocks by layer pattern, norm, head."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.models.config import BlocksConfig as BlocksConfig
    from blockyard.models.lm import LMConfig as LMConfig
    from blockyard.models.lm import LMOutput as LMOutput
    from blockyard.models.lm import TransformerLM as TransformerLM
    from blockyard.models.trunk import Trunk as Trunk
else:
    __all__ = exports(
        __name__,
        {
            "config": "BlocksConfig",
            "lm": "LMConfig LMOutput TransformerLM",
            "trunk": "Trunk",
        },
    )
