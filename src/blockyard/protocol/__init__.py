"""What a mixer, an FFN, a block and a cache are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.protocol.block import ResidualBlock as ResidualBlock
    from blockyard.protocol.block import build_block as build_block
    from blockyard.protocol.cache import LayerCache as LayerCache
    from blockyard.protocol.cache import ModelCache as ModelCache
    from blockyard.protocol.cache_base import Cache as Cache
    from blockyard.protocol.cache_base import Snapshot as Snapshot
    from blockyard.protocol.cache_ring import RingCache as RingCache
    from blockyard.protocol.cache_window import WindowCache as WindowCache
    from blockyard.protocol.costs import Cost as Cost
    from blockyard.protocol.costs import cost_of as cost_of
    from blockyard.protocol.costs import linear_flops as linear_flops
    from blockyard.protocol.ffn import FFN as FFN
    from blockyard.protocol.mixer import Mixer as Mixer
    from blockyard.protocol.mixer import check_heads as check_heads
    from blockyard.protocol.mixer import check_input as check_input
    from blockyard.protocol.mixer import default_positions as default_positions
else:
    __all__ = exports(
        __name__,
        {
            "block": "ResidualBlock build_block",
            "cache": "LayerCache ModelCache",
            "cache_base": "Cache Snapshot",
            "cache_ring": "RingCache",
            "cache_window": "WindowCache",
            "costs": "Cost cost_of linear_flops",
            "ffn": "FFN",
            "mixer": "Mixer check_heads check_input default_positions",
        },
    )
