"""Standard attention and the dense FFNs: the yardstick."""

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
