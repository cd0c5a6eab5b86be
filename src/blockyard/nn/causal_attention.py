"""Causal attention in half precision, forward and backward, for training on a CPU.

As plain products it writes and reads every score several times, hidden ones included, in buffers that no cache holds.
Here a few heads at a time go from queries to mixed values: the queries in blocks, each of which meets the keys that it
may see, so that scores stay in the processor's cache and most of the hidden ones are never computed. Only the weights
are kept for the backward pass, in half precision, in which torch's fused attention has them in its products, too.

Measured on an AMD EPYC (Zen 5, AVX-512 with bf16, no AMX), one thread, bfloat16, forward and backward: see
docs/training.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from blockyard.nn.attention_kernels import as_given
from blockyard.nn.derivatives import HandWritten, hand_written, keep, transformed
from blockyard.nn.norms import widened

# Queries of a block, and scores at a time: two megabytes of them in float32.
QUERIES = 128
SCORES = 2**19
# Up to so many scores compiled code computes all at once.
FEW_SCORES = 2**21
# Fewer queries are a decoding step; from more keys on the weights that are kept outgrow what is won.
FROM_LENGTH, UP_TO_LENGTH = 17, 512


def suits(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Return whether this is the faster way, for causal self-attention without a mask of the caller's."""
    if q.device.type != "cpu" or q.dtype not in (torch.bfloat16, torch.float16) or not torch.is_grad_enabled():
        return False
    if transformed() or torch.compiler.is_exporting() or not q.dtype == k.dtype == v.dtype:
        return False
    heads = q.shape[1] == k.shape[1] == v.shape[1]
    return heads and FROM_LENGTH <= q.shape[2] == k.shape[2] <= UP_TO_LENGTH


def causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Return causal softmax(q kᵀ · scale) v, with scores and softmax in float32 at least.

    Args:
        q: [B, H, T, d].
        k: [B, H, T, d].
        v: [B, H, T, d_v].
        scale: factor of the scores.

    Returns: [B, H, T, d_v].
    """
    rows = (t.reshape(-1, *t.shape[2:]) for t in (q, k, v))
    found = hand_written(_CausalAttention, *rows, scale)
    mixed: Tensor = found[0] if isinstance(found, tuple) else found
    return mixed.view(*q.shape[:3], -1)


def _defined(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Return the same of [N, T, ...] by its definition, with all scores at once."""
    hidden = torch.full(q.shape[-2:-1] * 2, float("-inf"), dtype=widened(q).dtype, device=q.device).triu(1)
    weights = (widened(q) @ widened(k).mT * scale + hidden).softmax(-1)
    return weights.to(v.dtype) @ v


class _CausalAttention(HandWritten):
    plain = staticmethod(_defined)

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        mixed, weights = _forward_of(q)(q, k, v, scale)
        keep(ctx, (q, k, v), (scale,), weights)
        ctx.mark_non_differentiable(weights)
        return mixed, weights

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights = ctx.saved_tensors
        grad_q, grad_k, grad_v = _backward_of(q)(grad, q, k, v, weights, *ctx.settings)
        return grad_q, grad_k, grad_v, None


def _forward_of(q: Tensor) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return the forward pass for queries [N, T, d]."""
    if not torch.compiler.is_compiling():
        return _forward
    # Few scores stay in the cache anyway, and a compiler fuses what is between the products. Of many it is told one
    # operation: the loop written out would be a graph of thousands.
    return _forward_whole if _few(q) else _forward_operation


def _backward_of(q: Tensor) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Return the backward pass that goes with it."""
    if not torch.compiler.is_compiling():
        return _backward
    return _backward_whole if _few(q) else _backward_operation


def _few(q: Tensor) -> bool:
    return q.shape[0] * q.shape[1] ** 2 <= FEW_SCORES


def _forward_whole(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return mixed values and weights [N, T, T] of all heads at once."""
    places = torch.arange(q.shape[1], device=q.device)
    with as_given(q.device):
        scores = torch.bmm(widened(q) * scale, widened(k).mT)
    scores = scores.masked_fill(places[:, None] < places, float("-inf"))
    weights = scores.softmax(-1).to(v.dtype)
    return torch.bmm(weights, v), weights


def _backward_whole(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, weights: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of queries, keys and values."""
    change, wide = widened(torch.bmm(grad, v.mT)), widened(weights)
    along = (wide * change).sum(-1, keepdim=True)
    change = (wide * (change - along) * scale).to(q.dtype)
    return torch.bmm(change, k), torch.bmm(change.mT, q), torch.bmm(weights.mT, grad)


def _forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return mixed values [N, T, d_v], and the weights of all blocks, one behind the other."""
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    length, wide = q.shape[1], widened(q[:0]).dtype
    mixed = torch.empty_like(v)
    kept = v.new_empty(len(q) * _count(length))
    hidden = torch.full((QUERIES, QUERIES), float("-inf"), dtype=wide).triu(1)
    space, at = torch.empty(_at_a_time(length) * min(length, QUERIES) * length, dtype=wide), 0
    for heads in _pieces(q):
        queries, keys = q[heads].to(wide) * scale, k[heads].to(wide)
        for now, seen in _blocks(length):
            shape = (len(queries), now.stop - now.start, seen)
            scores = space[: shape[0] * shape[1] * seen].view(shape)
            # Of transposed keys the product wants a matrix of their own; elsewhere a part of one is as good.
            torch.bmm(queries[:, now], keys[:, :seen].contiguous().mT, out=scores)
            scores[..., now] += hidden[: shape[1], : shape[1]]
            weights = kept[at : at + scores.numel()].view(shape)
            at += scores.numel()
            weights.copy_(torch.softmax(scores, -1, out=scores))
            mixed[heads, now] = torch.bmm(weights, v[heads, :seen])
    return mixed, kept


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, kept: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of queries, keys and values."""
    q, k, v, grad = q.contiguous(), k.contiguous(), v.contiguous(), grad.contiguous()
    length, at = q.shape[1], 0
    grad_q, grad_k, grad_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    for heads in _pieces(q):
        of_keys: list[Tensor] = []
        of_values: list[Tensor] = []
        for now, seen in _blocks(length):
            slopes, queries = grad[heads, now], q[heads, now]
            shape = (len(queries), now.stop - now.start, seen)
            weights = kept[at : at + shape[0] * shape[1] * seen].view(shape)
            at += weights.numel()
            change = torch.bmm(slopes, v[heads, :seen].contiguous().mT)
            # dS = P (dP - sum of P dP), in float32 within.
            change = torch._softmax_backward_data(change, weights, -1, weights.dtype)
            grad_q[heads, now] = torch.bmm(change, k[heads, :seen])
            of_keys.append(torch.bmm(change.mT, queries))
            of_values.append(torch.bmm(weights.mT, slopes))
        for into, parts in ((grad_k, of_keys), (grad_v, of_values)):
            into[heads] = _added(parts)
    return grad_q.mul_(scale), grad_k.mul_(scale), grad_v


def _added(parts: list[Tensor]) -> Tensor:
    """Return the sum of parts [n, seen, d], each of which reaches further than the one before; in float32, and rounded
    by whoever stores it."""
    if len(parts) == 1:
        return parts[0]
    total = parts[-1].to(widened(parts[-1][:0]).dtype)
    for part in parts[:-1]:
        total[:, : part.shape[1]] += part
    return total


def _blocks(length: int) -> Iterator[tuple[slice, int]]:
    """Yield blocks of queries, and the number of keys that their last one sees."""
    for first in range(0, length, QUERIES):
        stop = min(first + QUERIES, length)
        yield slice(first, stop), stop


def _count(length: int) -> int:
    """Return the scores of one head."""
    return sum((now.stop - now.start) * seen for now, seen in _blocks(length))


def _at_a_time(length: int) -> int:
    return max(1, SCORES // (length * min(length, QUERIES)))


def _pieces(q: Tensor) -> Iterator[slice]:
    """Yield heads of [N, T, d] that are computed at a time."""
    for first in range(0, len(q), _at_a_time(q.shape[1])):
        yield slice(first, min(first + _at_a_time(q.shape[1]), len(q)))


_forward_operation = torch.library.custom_op("blockyard::causal_attention", _forward, mutates_args=())
_backward_operation = torch.library.custom_op("blockyard::causal_attention_backward", _backward, mutates_args=())


@_forward_operation.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return v.new_empty(v.shape), v.new_empty(len(q) * _count(q.shape[1]))


@_backward_operation.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, kept: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
