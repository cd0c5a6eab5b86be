"""The FFN protocol: what every position-wise module takes, returns and can say of itself."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.protocol.costs import Cost

Aux = dict[str, Any]


class FFN(nn.Module):
    """Base of the built-in FFNs. A plain call returns the tensor; blocks call `with_aux`.

    `aux` is `{"losses": {name: scalar}, "stats": {...}}` or None. Losses are returned, never kept on the module:
    activation checkpointing would count them twice.
    """

    d_model: int
    # Whether x is complex64 or complex128 and parameters are real pairs (see complex/linear.py).
    complex_valued = False
    # Whether forward is made of calls of `Linear` members and of operations on single rows, and all parameters sit in
    # those members: then a mixture of experts computes many of them at once, by layers that hold a matrix per expert.
    stackable = False

    def forward(self, x: Tensor) -> Tensor:
        """x [..., d_model] -> the same shape."""
        raise NotImplementedError

    def with_aux(self, x: Tensor) -> tuple[Tensor, Aux | None]:
        """The output and what else there is to say of it."""
        return self(x), None

    def cost(self, tokens: int) -> Cost:
        """Parameters and forward FLOPs for `tokens` positions, by formula."""
        raise NotImplementedError

    def zero_init_output(self) -> None:
        """Make the output projection zero, so that a residual block starts as the identity."""
        raise NotImplementedError


def check_width(x: Tensor, d_model: int) -> None:
    """Raise InputError unless the last axis of x is d_model wide."""
    if x.ndim < 1 or x.shape[-1] != d_model:
        raise InputError(f"x has shape {tuple(x.shape)}, expected [..., {d_model}]")


def hidden_width(d_ff: int | None, default: int) -> int:
    """The given hidden width, or the default."""
    if d_ff is not None and d_ff < 1:
        raise InputError(f"d_ff={d_ff} should be at least 1")
    return d_ff if d_ff is not None else default
