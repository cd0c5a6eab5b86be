"""Standard attention and the dense FFNs: the yardstick that every other block is measured against.

A position looks at all others (a causal one at those before it) and takes a weighted mean of their values:

    out = W_o · softmax(q kᵀ / √head_dim + mask) v,    q, k, v = W_q x, W_k x, W_v x, cut into heads
    swiglu = W2 (SiLU(W1 x) ⊙ W3 x)        relu2 = W2 max(W1 x, 0)²

Files, in reading order:

    attention.py   StandardAttention ("standard"): multi-head, grouped or single key heads of any width, rotary
                   positions, QK-norm, a sliding window; the shortest complete example of a mixer
    heads.py       what heads turn by, and how they lie beside one another
    step.py        its decoding step: one token behind a cache, in as few calls as they can be
    dense.py       StandardFFN ("standard": GELU, ReLU or SiLU) and ReLU2FFN ("relu2"): two matrices
    gated.py       SwiGLU ("swiglu") and GLU ("glu"): three matrices

The definition in loops and float64, which every fast form is compared with: tests/standard/twin.py.
The scores themselves are computed in nn/attention.py, which picks the kernel; rotation is nn/rotary.py.

Use it where a token has to be found by its content, at any distance, exactly. It costs T² in time, and a cache that
grows by keys and values of every head: where that is too much, thinner caches (latent, vein) or a window pay.

Definition, costs and figures: docs/standard.md; decoding with its cache: docs/decoding.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.standard.attention import StandardAttention as StandardAttention
    from blockyard.standard.dense import ReLU2FFN as ReLU2FFN
    from blockyard.standard.dense import StandardFFN as StandardFFN
    from blockyard.standard.gated import GLU as GLU
    from blockyard.standard.gated import SwiGLU as SwiGLU
else:
    __all__ = exports(
        __name__,
        {
            "attention": "StandardAttention",
            "dense": "ReLU2FFN StandardFFN",
            "gated": "GLU SwiGLU",
        },
    )
