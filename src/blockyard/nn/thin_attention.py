"""Causal attention for heads of a few numbers, on a CPU in eager mode.

With heads so thin a kernel's time goes into the exponentials and into passes over the scores. Here a few dozen queries
at a time, of as many heads as fit, meet all their keys, so the scores stay in the processor's cache; they are held keys
by queries, which lets all four products run along rows; and instead of looking for each query's largest score, a bound
of it is subtracted inside the product (|q·k| <= |q| |k|), which leaves one pass: the exponential.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from blockyard.nn.derivatives import HandWritten, fused_or_plain, hand_written, keep

# From which length and number of scores and up to which head width this beats SDPA. Measured with 12 heads, forward and
# with backward, times SDPA's speed: heads of 4 at batch 8 and 128 tokens 1.4 and 1.25, batch 4 and 512 tokens 2.2 and
# 1.7, one row of 4096 tokens 1.66 and 1.21; heads of 8 in the same places 1.1 and 1.1, 1.6 and 1.3, 1.34 and 1.05. At
# 64 tokens it is as fast; heads of 16 are slower with backward from 1024 tokens on.
FROM_LENGTH, FROM_SCORES, UP_TO_WIDTH = 128, 3 * 2**18, 8
# Queries at a time, in sequences shorter than this and in others.
QUERIES, QUERIES_OF_LONG, LONG = 32, 64, 1024
# Scores at a time, of several heads when they are short: what stays in the processor's cache.
SCORES = 2**18
# A bound so far above the scores that sums get this small has cost digits: SDPA computes those cases.
_LEAST_SUM = 1e-25
# Weights are powers of 2: the CPU's exp takes ten times as long where its result is 0, as it is of hidden keys.
_LOG2E = math.log2(math.e)


def thin_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Return causal softmax(q kᵀ · scale) v.

    Args:
        q: [B, H, T, d].
        k: [B, H, T, d].
        v: [B, H, T, d_v].
        scale: factor of the scores.

    Returns: [B, H, T, d_v], stored as [B, T, H, d_v].
    """
    mixed, sums = hand_written(_ThinAttention, q, k, v, scale)
    if bool(sums.amin() >= _LEAST_SUM):
        return mixed
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    return fused_or_plain(out, _defined, (q, k, v), (scale,))


def suits(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Return whether this is the faster way, for causal self-attention without a mask."""
    if q.device.type != "cpu" or q.dtype != torch.float32 or torch.compiler.is_compiling():
        return False
    if torch.is_autocast_enabled("cpu"):
        # Its products would be rounded.
        return False
    thin = max(q.shape[-1], v.shape[-1]) <= UP_TO_WIDTH and k.shape[1] == v.shape[1] == q.shape[1]
    length = q.shape[-2]
    return thin and length == k.shape[-2] >= FROM_LENGTH and q[..., 0].numel() * length >= FROM_SCORES


def _defined(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Return the same by its definition, with all scores at once."""
    hidden = torch.full(q.shape[-2:-1] * 2, float("-inf"), dtype=q.dtype, device=q.device).triu(1)
    return ((q * scale) @ k.mT + hidden).softmax(-1) @ v


class _ThinAttention(HandWritten):
    plain = staticmethod(_defined)

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        batch, width, v_width = q.shape[0], q.shape[-1], v.shape[-1]
        rows, keys, values = _laid_out(q, k, v, scale)
        longest = keys.square().sum(-1).amax(-1, keepdim=True).sub_(1).sqrt_()
        shift = rows[:, width]
        torch.mul(rows[:, :width].square().sum(1).sqrt_(), longest.neg_(), out=shift)
        found = torch.empty_like(values)
        for some, now, seen, weights in _weights(rows, keys):
            found[some, :, now] = torch.bmm(values[some, :, :seen], weights)
        sums, mixed = found[:, v_width], found[:, :v_width]
        mixed /= sums.unsqueeze(1)
        # From now on weights that add up to 1.
        shift -= sums.log2()
        keep(ctx, (q, k, v), (scale,), shift, mixed)
        ctx.mark_non_differentiable(sums)
        return _by_token(mixed, batch), sums

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, shift, mixed = ctx.saved_tensors
        (scale,) = ctx.settings
        rows, keys, values = _laid_out(q, k, v, scale)
        batch, width, v_width = q.shape[0], q.shape[-1], v.shape[-1]
        rows[:, width] = shift
        # dS = P (dP - Σ dO O): the sum goes into the product as one more row.
        into = values.new_empty(values.shape)
        grads = into[:, :v_width]
        grads.unflatten(0, (batch, -1)).copy_(grad.mT)
        torch.sum(grads * mixed, 1, out=into[:, v_width]).neg_()
        grad_q, grad_k, grad_v = torch.empty_like(rows), torch.zeros_like(rows), torch.zeros_like(values)
        space = _space(rows)
        for some, now, seen, weights in _weights(rows, keys):
            grad_v[some, :, :seen] += torch.bmm(into[some, :, now], weights.mT)
            change = space[: weights.numel()].view_as(weights)
            torch.bmm(values[some, :, :seen].mT, into[some, :, now], out=change).mul_(weights)
            grad_k[some, :, :seen] += torch.bmm(rows[some, :, now], change.mT)
            grad_q[some, :, now] = torch.bmm(keys[some, :seen].mT, change)
        # Rows are q · scale · log2 e.
        grad_q, grad_k, grad_v = grad_q[:, :width] * scale, grad_k[:, :width] / _LOG2E, grad_v[:, :v_width]
        return _by_token(grad_q, batch), _by_token(grad_k, batch), _by_token(grad_v, batch), None


def _laid_out(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries in units of the scores' powers of 2 and values, along rows over all tokens, and keys: [B · H,
    ...].

    Queries and values have a row more: room for what a query's scores are lowered by, and 1, which gives the sums. Keys
    have a column of 1 more.
    """
    (batch, heads, length, width), v_width = q.shape, v.shape[-1]
    rows = q.new_empty(batch, heads, width + 1, length)
    torch.mul(q.mT, scale * _LOG2E, out=rows[:, :, :width])
    keys = k.new_ones(batch, heads, length, width + 1)
    keys[..., :width] = k
    values = v.new_ones(batch, heads, v_width + 1, length)
    values[:, :, :v_width] = v.mT
    return rows.flatten(0, 1), keys.flatten(0, 1), values.flatten(0, 1)


def _weights(rows: Tensor, keys: Tensor) -> Iterator[tuple[slice, slice, int, Tensor]]:
    """Compute 2^(keys · rows) [heads, keys seen, queries]: (which heads, which queries, number of keys, weights)."""
    heads, _, length = rows.shape
    at_a_time = _queries(length)
    hidden = torch.full((at_a_time, at_a_time), float("-inf"), dtype=rows.dtype).tril(-1)
    space = _space(rows)
    for first in range(0, length, at_a_time):
        now = slice(first, min(first + at_a_time, length))
        count, seen = now.stop - first, now.stop
        together = max(1, SCORES // (seen * count))
        for head in range(0, heads, together):
            some = slice(head, min(head + together, heads))
            weights = space[: (some.stop - head) * seen * count].view(-1, seen, count)
            torch.bmm(keys[some, :seen], rows[some, :, now], out=weights)
            weights[:, first:].add_(hidden[:count, :count])
            yield some, now, seen, weights.exp2_()


def _space(rows: Tensor) -> Tensor:
    """Return room for the scores of some queries: of one head at least."""
    return rows.new_empty(max(SCORES, rows.shape[-1] * _queries(rows.shape[-1])))


def _queries(length: int) -> int:
    return QUERIES if length < LONG else QUERIES_OF_LONG


def _by_token(rows: Tensor, batch: int) -> Tensor:
    """Compute [B · H, d, T] -> [B, H, T, d], stored as [B, T, H, d]."""
    return rows.unflatten(0, (batch, -1)).permute(0, 3, 1, 2).contiguous().transpose(1, 2)
