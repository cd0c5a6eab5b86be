"""Dense FFNs of two matrices: up, a non-linearity, down (Vaswani et al. 2017; squared ReLU: arXiv 2109.08668)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from blockyard.nn.activations import squared_relu
from blockyard.nn.dropout import Dropout
from blockyard.nn.linear import Linear, check_width
from blockyard.protocol.costs import Cost, linear_flops
from blockyard.protocol.ffn import FFN, hidden_width
from blockyard.registry.register import register_ffn

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu, "gelu_tanh": partial(F.gelu, approximate="tanh"), "relu": F.relu, "silu": F.silu,
}  # fmt: skip


class _TwoMatrixFFN(FFN):
    """W2 · act(W1 x)."""

    # A mixture may hold many of these as one bank of stacked matrices.
    stackable = True

    def __init__(self, d_model: int, *, d_ff: int | None = None, bias: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.d_model = d_model
        self.d_ff = hidden_width(d_ff, 4 * d_model)
        self.w1 = Linear(d_model, self.d_ff, bias=bias)
        self.w2 = Linear(self.d_ff, d_model, bias=bias)
        self.dropout = Dropout(dropout)

    def activate(self, h: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        check_width(x, self.d_model)
        return self.w2(self.dropout(self.activate(self.w1(x))))

    def cost(self, tokens: int) -> Cost:
        shapes = [(self.d_model, self.d_ff), (self.d_ff, self.d_model)]
        # The counter that the formula is tested against sees products, no additions: biases count as parameters
        # alone.
        biases = self.d_ff + self.d_model if self.w1.bias is not None else 0
        return Cost(2 * self.d_model * self.d_ff + biases, linear_flops(tokens, *shapes))

    def zero_init_output(self) -> None:
        nn.init.zeros_(self.w2.weight)


@register_ffn("standard", group="ffn")
class StandardFFN(_TwoMatrixFFN):
    """The original FFN: two matrices with GELU, ReLU or SiLU between them.

    Args:
        d_model: width of the residual stream.
        d_ff: hidden width; None = 4 · d_model.
        activation: gelu, gelu_tanh (its approximation by a tanh, GPT-2's), relu or silu.
        bias: biases in both matrices.
        dropout: probability of dropping a hidden element in training.

    Shapes: x [..., d_model] -> [..., d_model].
    """

    def __init__(
        self,
        d_model: int,
        *,
        d_ff: int | None = None,
        activation: Literal["gelu", "gelu_tanh", "relu", "silu"] = "gelu",
        bias: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(d_model, d_ff=d_ff, bias=bias, dropout=dropout)
        self.activation = activation

    def activate(self, h: Tensor) -> Tensor:
        return _ACTIVATIONS[self.activation](h)


@register_ffn("relu2", group="ffn")
class ReLU2FFN(_TwoMatrixFFN):
    """Two matrices with a squared ReLU between them (Primer, arXiv 2109.08668).

    Args:
        d_model: width of the residual stream.
        d_ff: hidden width; None = 4 · d_model.
        bias: biases in both matrices.
        dropout: probability of dropping a hidden element in training.

    Shapes: x [..., d_model] -> [..., d_model].
    """

    def activate(self, h: Tensor) -> Tensor:
        # The square makes the slope continuous at 0, and large activations larger.
        return squared_relu(h)
