"""The FFN protocol: what every position-wise module takes, returns and can say of itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.protocol.costs import Cost, measured_cost

Aux = dict[str, Any]


class FFN(nn.Module):
    """Base of the built-in FFNs. A plain call returns the tensor; blocks call `with_aux`.

    `aux` is `{"losses": {name: scalar}, "stats": {...}}` or None. Losses are returned, never kept on the module:
    activation checkpointing would count them twice.
    """

    d_model: int
    # Whether x is complex64 or complex128 and parameters are real pairs.
    complex_valued = False
    # Whether forward is made of calls of `Linear` members and of operations on single rows, and all parameters sit in
    # those members: then a mixture of experts computes many of them at once, by layers that hold a matrix per expert.
    # Claimed by the class that knows it: a bank that took a forward with a branch on the data would compute something
    # else.
    stackable = False

    def forward(self, x: Tensor) -> Tensor:
        """Compute x [..., d_model] -> the same shape."""
        raise NotImplementedError

    def with_aux(self, x: Tensor) -> tuple[Tensor, Aux | None]:
        """Return the output and what else there is to say of it."""
        # Called, not `forward`: hooks and adapters belong to the call.
        return self(x), None

    def cost(self, tokens: int) -> Cost:
        """Return parameters and forward FLOPs for `tokens` positions; by formula where an FFN has one, else
        measured."""
        return measured_cost(self, tokens, self.d_model)

    def zero_init_output(self) -> None:
        """Make the output projection zero, so that a residual block starts as the identity; one that cannot say which
        matrix is its last keeps it."""


class Shared(NamedTuple):
    """FFNs behind one projection: they read z = V x and write what U takes back, with one V and one U for all.

    An FFN class that can be computed so says it by a classmethod `share(d_model, rank, count, expert, options)`, which
    a mixture of experts asks.

    Args:
        projector: V and U, by `matrices()`.
        beside: a path from x to the output that stands once, or None.
        members: the FFNs, of z.
        part: their method that computes.
    """

    projector: nn.Module
    beside: nn.Module | None
    members: Sequence[nn.Module]
    part: str


def hidden_width(d_ff: int | None, default: int) -> int:
    """Return the given hidden width, or the default."""
    if d_ff is not None and d_ff < 1:
        raise InputError(f"d_ff={d_ff} should be at least 1")
    return d_ff if d_ff is not None else default
