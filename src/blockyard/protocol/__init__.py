"""The protocol: what a mixer, an FFN, a block and a cache are to everything above them.

    mixer   forward(x, *, padding_mask=None, attn_mask=None, causal=None, positions=None, context=None, cache=None,
            return_weights=False) -> (out, weights | None)
    FFN     forward(x) -> out,  with_aux(x) -> (out, losses and statistics | None)
    block   x + attn(ln1(x)), then x + ffn(ln2(x)) (pre-norm), or the norms after the additions (post-norm)
    cache   named tensors per layer, owned by the caller: append, crop, reorder, select, repeat, snapshot, rollback

A mixer honours an argument or refuses it; it never ignores one. A foreign one need not inherit from anything: it is
passed what its `forward` names.

Files, in reading order:

    mixer.py          Mixer, check_input, check_heads, default positions
    ffn.py            FFN
    block.py          ResidualBlock; build_block makes the block of a layer specification
    cache_base.py     what all caches share: rows, limits, snapshots, saying beforehand what they refuse
    cache.py          LayerCache (grows by doubling, or static) and ModelCache, all layers or none
    cache_window.py   WindowCache: a sliding window's, which forgets
    cache_sinks.py    SinkCache: the same with the first tokens of every row, which are never forgotten
    windows.py        masks and weights over the whole text where a windowed cache shows a part of it
    cache_ring.py     RingCache: the last values and a small state, which goes back to snapshots alone
    steps.py          which calls are one token behind a plain cache, for which mixers have short ways
    costs.py          Cost: parameters, FLOPs and cache bytes by formula
    training.py       what a system may ask of the training loop: options, rates, hooks

Read it before writing a mixer: `check_input`, `LayerCache` and `Cost` are what one usually needs of it.

A block of your own: docs/custom-blocks.md; caches and their figures: docs/decoding.md; the checks: docs/conformance.md.
"""

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
    from blockyard.protocol.cache_sinks import SinkCache as SinkCache
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
            "cache_sinks": "SinkCache",
            "cache_window": "WindowCache",
            "costs": "Cost cost_of linear_flops",
            "ffn": "FFN",
            "mixer": "Mixer check_heads check_input default_positions",
        },
    )
