"""Gated FFNs of three matrices: W2 (gate(W1 x) ⊙ W3 x) (Shazeer 2020, arXiv 2002.05202; basics document 3.5.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockyard.nn.dropout import Dropout
from blockyard.nn.linear import Linear, check_width
from blockyard.protocol.costs import Cost, linear_flops
from blockyard.protocol.ffn import FFN, hidden_width
from blockyard.registry.register import register_ffn


class _GatedFFN(FFN):
    # See `dense.py`: one bank for a mixture's experts.
    stackable = True

    def __init__(self, d_model: int, *, d_ff: int | None = None, bias: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.d_model = d_model
        # 8/3 · d_model makes three matrices as large as the two of a 4 · d_model FFN; multiples of 64 run fast.
        self.d_ff = hidden_width(d_ff, 64 * -(-8 * d_model // (3 * 64)))
        self.w1 = Linear(d_model, self.d_ff, bias=bias)
        self.w2 = Linear(self.d_ff, d_model, bias=bias)
        self.w3 = Linear(d_model, self.d_ff, bias=bias)
        self.dropout = Dropout(dropout)

    def gate(self, h: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        check_width(x, self.d_model)
        # Dropped behind the gate: an element is gone for gate and value at once.
        return self.w2(self.dropout(self.gate(self.w1(x)) * self.w3(x)))

    def cost(self, tokens: int) -> Cost:
        shapes = [(self.d_model, self.d_ff)] * 2 + [(self.d_ff, self.d_model)]
        biases = 2 * self.d_ff + self.d_model if self.w1.bias is not None else 0
        return Cost(3 * self.d_model * self.d_ff + biases, linear_flops(tokens, *shapes))

    def zero_init_output(self) -> None:
        nn.init.zeros_(self.w2.weight)


@register_ffn("swiglu", group="ffn")
class SwiGLU(_GatedFFN):
    """W2 (SiLU(W1 x) ⊙ W3 x).

    Args:
        d_model: width of the residual stream.
        d_ff: hidden width; None = 8/3 · d_model rounded up to a multiple of 64.
        bias: biases in the three matrices.
        dropout: probability of dropping a hidden element in training.

    Shapes: x [..., d_model] -> [..., d_model].
    """

    def gate(self, h: Tensor) -> Tensor:
        return F.silu(h)


@register_ffn("glu", group="ffn")
class GLU(_GatedFFN):
    """W2 (σ(W1 x) ⊙ W3 x): the sigmoid gate that SwiGLU came from.

    Args:
        d_model: width of the residual stream.
        d_ff: hidden width; None = 8/3 · d_model rounded up to a multiple of 64.
        bias: biases in the three matrices.
        dropout: probability of dropping a hidden element in training.

    Shapes: x [..., d_model] -> [..., d_model].
    """

    def gate(self, h: Tensor) -> Tensor:
        return torch.sigmoid(h)
