"""Summaries of a sequence: mean, attention with a learnt query, low-order cosine coefficients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from blockyard.nn.roles import Role

PoolingType = Literal["mean", "attention", "dct"]
COEFFICIENTS = 4


class QueryPooling(nn.Module):
    """pool(Q), the input of the spectral gate: [B, N, d_model] -> [B, d_model].

    Mean and cosine pooling are linear, so they pool first and project one row (or a few) instead of N.

    `dct` as published weighs time by a cosine that falls so fast that about 90 % of its weight lies on the first N/64
    tokens. Here it is the orders 0 to 3 of the DCT-II, each over the whole sequence, combined by a learnt weight per
    head and order; order 0 is the mean.

    Args:
        kind: mean, attention or dct.
        n_heads: number of heads, which summarise each in its own way.
        head_dim: width of a head.
    """

    def __init__(self, kind: PoolingType, n_heads: int, head_dim: int) -> None:
        super().__init__()
        self.kind, self.n_heads, self.head_dim = kind, n_heads, head_dim
        if kind == "attention":
            self.query = nn.Parameter(torch.randn(n_heads, head_dim) * head_dim**-0.5)
        if kind == "dct":
            # At the start the mean counts most.
            start = 1 / torch.arange(1, COEFFICIENTS + 1, dtype=torch.float64)
            self.orders = nn.Parameter(start.to(torch.get_default_dtype())[:, None].repeat(1, n_heads))

    def parameter_roles(self) -> dict[str, Role]:
        return {name: Role("vector") for name, _ in self.named_parameters(recurse=False)}

    def forward(
        self, x: Tensor, project: Callable[[Tensor], Tensor], counts: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        """Return the summary [B, d_model].

        Args:
            x: [B, N, d_model]; beyond a row's count it is 0.
            project: the query projection, whose output has `dtype`.
            counts: tokens per row [B], or None when every row has all N.
            dtype: float32 or float64, what sums are taken in.
        """
        if self.kind == "mean":
            return project(_mean(x, counts, dtype))
        if self.kind == "dct":
            # The pooled rows are [B, orders, d_model].
            # Four rows are projected, not N: both maps are linear.
            q = project(_cosines(x.shape[1], counts, dtype, x.device) @ x.to(dtype))
            return (self._heads(q) * self.orders.to(dtype)[..., None]).sum(-3).flatten(-2)
        q = self._heads(project(x))
        # One learnt query per head against every token: attention of a single position.
        scores = (q * self.query.to(dtype)).sum(-1) * self.head_dim**-0.5  # [B, N, H]
        if counts is not None:
            beyond = torch.arange(x.shape[1], device=x.device) >= counts.clamp(min=1)[:, None]
            scores = scores.masked_fill(beyond[..., None], -torch.inf)
        return (scores.softmax(1)[..., None] * q).sum(1).flatten(-2)

    def _heads(self, q: Tensor) -> Tensor:
        return q.unflatten(-1, (self.n_heads, self.head_dim))

    def projected_rows(self, tokens: int) -> int:
        """Return rows that go through the query projection, per sequence."""
        return {"mean": 1, "dct": COEFFICIENTS, "attention": tokens}[self.kind]

    def flops(self, tokens: int, d_model: int) -> int:
        """Return FLOPs of the weighted sum over time."""
        return 2 * COEFFICIENTS * tokens * d_model if self.kind == "dct" else 0

    def extra_repr(self) -> str:
        return self.kind


def _mean(x: Tensor, counts: Tensor | None, dtype: torch.dtype) -> Tensor:
    total = x.sum(1, dtype=dtype)
    # A row of nothing but padding is divided by 1.
    return total / (x.shape[1] if counts is None else counts.clamp(min=1)[:, None].to(dtype))


def _cosines(length: int, counts: Tensor | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return DCT-II weights divided by the number of tokens, [B or 1, orders, length]."""
    number = torch.tensor([length], device=device) if counts is None else counts.clamp(min=1)
    number = number.to(dtype)[:, None, None]
    time = torch.arange(length, device=device, dtype=dtype)
    order = torch.arange(COEFFICIENTS, device=device, dtype=dtype)[:, None]
    return torch.cos(math.pi / number * (time + 0.5) * order) / number
