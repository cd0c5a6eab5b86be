"""The scores that are no dot product of pairs, in blocks of queries, with a backward pass by hand.

Autograd would keep five or six matrices as large as the scores and pass over each of them again. Here a block of
queries meets its keys while both parts of the scores stay in the processor's cache, nothing of their size is kept, and
the backward pass makes them again. Queries and queries turned back by a quarter lie above one another, so that one
product gives Re s and Im s, and one their gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from blockyard.nn.derivatives import HandWritten, hand_written, keep
from blockyard.nn.products import product

# Added to |s|²: the magnitude is then smooth at s = 0.
EPS = 1e-6
# Numbers of one part of a block's scores: what stays in the processor's cache beside its gradients.
_BLOCK = 1 << 19
# The power of two takes a third of the time of the exponential.
_LOG2E = math.log2(math.e)


def can_pass(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Return whether `scored` takes these: full precision in eager mode on a CPU, keys and values of one width."""
    eager = q.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.is_autocast_enabled("cpu")
    return eager and q.dtype in (torch.float32, torch.float64) and k.dtype == v.dtype == q.dtype


def scored(q: Tensor, k: Tensor, v: Tensor, share: Tensor | None, score: str, causal: bool, scale: float) -> Tensor:
    """Return attention by one of the scores magnitude, phase and split (see `scores.py`), without masks of the caller.

    Args:
        q: [B, H, T, 2d] interleaved parts.
        k: [B, H_kv, S, 2d].
        v: [B, H_kv, S, 2d_v].
        share: [H], for split.
        score: which.
        causal: the queries are the last T positions, and see no later key.
        scale: factor of s.

    Returns: [B, H, T, 2d_v], stored as [B, T, H, 2d_v].
    """
    found = hand_written(_Scored, q, k, v, share, score, causal, scale)
    return found if isinstance(found, Tensor) else found[0]


def turned_back(pairs: Tensor) -> Tensor:
    """Compute −i · z of interleaved pairs [..., 2d]: (a, b) -> (b, −a)."""
    a, b = pairs[..., 0::2], pairs[..., 1::2]
    return torch.stack([b, -a], dim=-1).flatten(-2)


def _turned_on(pairs: Tensor) -> Tensor:
    """Compute i · z."""
    return -turned_back(pairs)


def _defined(q: Tensor, k: Tensor, v: Tensor, share: Tensor | None, score: str, causal: bool, scale: float) -> Tensor:
    """Return the same by its definition, with all scores at once."""
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    real, imaginary = (q * scale) @ k.mT, (turned_back(q) * scale) @ k.mT
    hidden = torch.zeros(real.shape[-2:], dtype=q.dtype, device=q.device)
    if causal:
        hidden = hidden.fill_(float("-inf")).triu(1 + k.shape[-2] - q.shape[-2])
    if score == "split":
        assert share is not None
        part = share.view(-1, 1, 1)
        weights = part * (real + hidden).softmax(-1) + (1 - part) * (imaginary + hidden).softmax(-1)
        return weights @ v
    size = (real.square() + imaginary.square() + EPS).sqrt()
    weights = (size + hidden).softmax(-1)
    if score == "magnitude":
        return weights @ v
    over = weights / size
    return (over * real) @ v + _turned_on((over * imaginary) @ v)


class _Scored(HandWritten):
    plain = staticmethod(_defined)

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, share: Tensor | None, score: str, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        batch, heads, queries, _ = q.shape
        out = q.new_empty(batch, queries, heads, v.shape[-1])
        # What every row's powers of two are lowered by; two of them where there are two softmaxes.
        lowered = q.new_empty(batch, heads, 2 if score == "split" else 1, queries, 1)
        for row, head, group, now, both, hidden in _blocks(q, k, causal, scale, score):
            values, seen = v[row, group], both.shape[-1]
            part = None if share is None else float(share[head])
            weights = _weights(both, hidden, score, part, lowered[row, head, :, now], fresh=True)[0]
            mixed = product(weights.flatten(0, 1), values[:seen].mT)
            if score == "phase":
                over, count = mixed.view(2, -1, mixed.shape[-1]), mixed.shape[-1]
                mixed = over[0] + _turned_on(over[1]) if count else over[0]
            out[row, now, head] = mixed
        out = out.transpose(1, 2)
        keep(ctx, (q, k, v, share), (score, causal, scale), lowered, out)
        ctx.mark_non_differentiable(lowered)
        return out, lowered

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, share, lowered, out = ctx.saved_tensors
        score, causal, scale = ctx.settings
        grad_q = torch.empty(q.shape, dtype=q.dtype)
        # Made transposed, over which the products add up fastest.
        grad_k, grad_v = (torch.zeros(*t.shape[:2], t.shape[3], t.shape[2], dtype=t.dtype) for t in (k, v))
        grad_share = None if share is None else torch.zeros_like(share)
        for row, head, group, now, both, hidden in _blocks(q, k, causal, scale, score):
            keys, values, seen = k[row, group], v[row, group], both.shape[-1]
            part = None if share is None else float(share[head])
            weights, kept = _weights(both, hidden, score, part, lowered[row, head, :, now], fresh=False)
            from_out = grad[row, head, now]
            if score == "phase":
                from_out = torch.stack([from_out, turned_back(from_out)])
                along = (from_out[0] * out[row, head, now]).sum(-1, keepdim=True)
            else:
                along, from_out = (from_out * out[row, head, now]).sum(-1, keepdim=True), from_out.unsqueeze(0)
            from_out = from_out.flatten(0, 1)
            into = grad_v[row, group, :, :seen]
            into.copy_(product(from_out.mT, weights.flatten(0, 1).mT, into, owned=True, rows=len(from_out)))
            towards = product(from_out, values[:seen]).view(weights.shape)
            change, differs = _change(both, towards, kept, along, score, part)
            if grad_share is not None:
                grad_share[head] += differs
            # Of Re s by queries, of Im s by those turned back: one product for both, each way.
            change = change.flatten(0, 1)
            back = product(change, keys[:seen].mT).view(2, -1, q.shape[-1])
            grad_q[row, head, now] = torch.add(back[0], _turned_on(back[1])).mul_(scale)
            asked = q[row, head, now]
            asked = torch.cat([asked, turned_back(asked)]).mul_(scale)
            into = grad_k[row, group, :, :seen]
            into.copy_(product(asked.mT, change.mT, into, owned=True, rows=len(asked)))
        return grad_q, grad_k.mT, grad_v.mT, grad_share, None, None, None


def _blocks(
    q: Tensor, k: Tensor, causal: bool, scale: float, score: str
) -> Iterator[tuple[int, int, int, slice, Tensor, Tensor | None]]:
    """Compute Re s and Im s of some queries of one head, [2, queries, keys seen]: (row, head, key head, which queries,
    scores, what hides the future or None)."""
    batch, heads, queries, _ = q.shape
    keys, groups = k.shape[2], heads // k.shape[1]
    # Multiples of 32, of which product kernels are few.
    step = min(queries, max(32, _BLOCK // max(1, keys) // 32 * 32))
    # Split's scores are exponents themselves.
    factor = scale * (_LOG2E if score == "split" else 1.0)
    turned = turned_back(q)
    for row in range(batch):
        for head in range(heads):
            for first in range(0, queries, step):
                now = slice(first, min(first + step, queries))
                seen = keys - queries + now.stop if causal else keys
                asked = torch.cat([q[row, head, now], turned[row, head, now]]).mul_(factor)
                both = product(asked, k[row, head // groups, :seen]).view(2, -1, seen)
                hidden = None
                if causal:
                    hidden = torch.full((now.stop - first, seen), float("-inf"), dtype=q.dtype)
                    hidden = hidden.triu_(1 + seen - (now.stop - first))
                yield row, head, head // groups, now, both, hidden


def _weights(
    both: Tensor, hidden: Tensor | None, score: str, share: float | None, lowered: Tensor, *, fresh: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return what values are multiplied by, [1 or 2, queries, keys], and what the backward pass needs beside.

    Args:
        both: Re s and Im s; may be overwritten.
        hidden: added to exponents, or None.
        score: which.
        share: of the real parts, for split.
        lowered: what exponents are lowered by so that powers add up to 1; written if `fresh`, else read.
        fresh: whether this is the first time.
    """
    if score == "split":
        assert share is not None
        parts = _powers(both if hidden is None else both.add_(hidden), lowered, fresh)
        return torch.lerp(parts[1], parts[0], share).unsqueeze(0), (parts,)
    size = torch.mul(both[0], both[0]).addcmul_(both[1], both[1]).add_(EPS).sqrt_()
    exponents = size * _LOG2E
    weights = _powers(exponents if hidden is None else exponents.add_(hidden), lowered[0], fresh)
    if score == "magnitude":
        return weights.unsqueeze(0), (weights, size)
    over = weights.div_(size)
    return both.mul_(over) if fresh else both * over, (over, size)


def _powers(exponents: Tensor, lowered: Tensor, fresh: bool) -> Tensor:
    """Return powers of two that add up to 1 along rows, in place."""
    if not fresh:
        return exponents.sub_(lowered).exp2_()
    most = exponents.amax(-1, keepdim=True)
    exponents.sub_(most).exp2_()
    sums = exponents.sum(-1, keepdim=True)
    torch.add(most, sums.log2(), out=lowered)
    return exponents.div_(sums)


def _change(
    both: Tensor, towards: Tensor, kept: tuple[Tensor, ...], along: Tensor, score: str, share: float | None
) -> tuple[Tensor, float]:
    """Return gradients of Re s and Im s, [2, queries, keys], and of the share.

    Args:
        both: Re s and Im s, overwritten.
        towards: gradients of what values were multiplied by.
        kept: what `_weights` gave.
        along: Σ of a query's output times its gradient.
        score: which.
        share: of the real parts, for split.
    """
    if score == "split":
        (parts,) = kept
        assert share is not None
        # Each softmax has its own mean of the gradients.
        products = parts * towards
        means = products.sum(-1, keepdim=True)
        change = products.addcmul_(parts, means, value=-1.0)
        change[0] *= share
        change[1] *= 1 - share
        return change, float((means[0] - means[1]).sum())
    if score == "magnitude":
        weights, size = kept
        return both.mul_(towards[0].sub_(along).mul_(weights).div_(size)), 0.0
    # With w = weight / |s| and t the gradient of w s: the weight's own gradient is c = Re(t s*) / |s|, of which a
    # softmax takes off the mean, and what is across s turns it. Together w (t + s (c - mean - c / |s|)).
    over, size = kept
    of_weight = torch.mul(towards[0], both[0]).addcmul_(towards[1], both[1]).div_(size)
    of_weight.sub_(of_weight / size).sub_(along)
    return towards.addcmul_(both, of_weight).mul_(over), 0.0
