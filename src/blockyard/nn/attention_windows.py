"""A sliding window in blocks: every block of queries meets its own keys and a window of them before, O(T · window).

Attention sinks stand in columns of their own in front (`nn/attention_sinks.py`).
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from blockyard.nn.attention_kernels import Kernel, by_matmul, by_sdpa, use_matmul
from blockyard.nn.attention_masks import combine_masks
from blockyard.nn.attention_sinks import Sinks, seen_beside


def window_block(window: int) -> int:
    """Return queries that a sliding window scores together: few enough to score little in vain, enough to be a
    product."""
    # Forward and backward at windows of 64 to 1024 (benchmarks/window.py).
    return max(32, min(window, 64), window // 4)


def window_span(window: int, causal: bool) -> int:
    """Return keys that a block of queries is scored against; up to that length the window is a mask, above it
    blocks."""
    return window_block(window) + window * (1 if causal else 2)


def windowed_pairs(tokens: int, window: int, causal: bool, sinks: int = 0) -> int:
    """Return query-key pairs that a sliding window, and sinks beside it, score over a whole sequence."""
    block, span = window_block(window), window_span(window, causal)
    return tokens * tokens if tokens <= span else block * -(-tokens // block) * (span + min(sinks, tokens))


def mask_with_sinks(
    q: Tensor,
    k: Tensor,
    beside: Sinks,
    causal: bool,
    padding_mask: Tensor | None,
    window: int,
    attn_mask: Tensor | None,
) -> Tensor | None:
    """Return the mask of sinks and of the keys behind them, [B or 1, 1, T, n + S] or as the caller's broadcasts; None
    if one query sees all."""
    queries, keys, count = q.shape[2], k.shape[2], beside.places.shape[1]
    if queries == 1 and causal and padding_mask is None and attn_mask is None and beside.all_seen:
        return None
    rows = torch.arange(keys - queries, keys, device=q.device)
    sinks = seen_beside(beside.places, rows, window, causal).unsqueeze(1)  # [B or 1, 1, T, n]
    near = combine_masks(q, k, causal=causal, padding_mask=padding_mask, attn_mask=None, window=window)
    assert near is not None  # a window is a mask
    near = near.view(*(1,) * (4 - near.ndim), *near.shape)
    batch = max(len(sinks), len(near))
    mask = torch.cat([part.expand(batch, -1, queries, -1) for part in (sinks, near)], -1)
    if attn_mask is None:
        return mask
    if attn_mask.dtype == torch.bool:
        return attn_mask & mask
    return attn_mask.expand(*attn_mask.shape[:-1], count + keys).masked_fill(~mask, float("-inf"))


def windowed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool,
    padding_mask: Tensor | None,
    window: int,
    scale: float,
    kernel: Kernel,
    beside: Sinks | None = None,
) -> Tensor:
    """Return blocks of queries, each against its own keys and a window before (and after) them: O(T · window).

    With a cache there are up to window − 1 keys in front of the queries. Sinks stand in front of every block's keys.
    """
    batch, _, queries, _ = q.shape
    if v.shape[1] != k.shape[1]:
        # Rows and heads are folded together below, where values that all heads share would meet one row's keys alone.
        v = v.expand(-1, k.shape[1], -1, -1)
        beside = None if beside is None else replace(beside, v=beside.v.expand(-1, k.shape[1], -1, -1))
    block, span = window_block(window), window_span(window, causal)
    blocks = -(-queries // block)
    extra = blocks * block - queries
    before, after = window - (k.shape[-2] - queries), 0 if causal else window
    q = _fold(F.pad(q, (0, 0, 0, extra)).unflatten(2, (blocks, block)), padding_mask)
    # The overlapping blocks of keys are views of one padded copy.
    k, v = (
        _fold(F.pad(t, (0, 0, before, extra + after)).unfold(2, span, block).mT, padding_mask) for t in (k, v)
    )  # [blocks, B · H_kv, span, d]
    steps, starts = (torch.arange(n, device=q.device) for n in (span, blocks))
    distance = torch.arange(block, device=q.device)[:, None] + window - steps
    near = (distance >= 0) & (distance < window) if causal else distance.abs() < window
    # Which keys exist: not those in front of the first; those behind the last only behind queries that do not exist.
    place = starts[:, None] * block + steps  # [blocks, span]
    exists = place >= before if causal else (place >= before) & (place < before + queries)
    guard = padding_mask is not None or bool(extra and not causal)
    if padding_mask is None:
        mask = exists[:, None, None, :] & near  # [blocks, 1, block, span]
    else:
        padded = F.pad(padding_mask.to(torch.bool), (before, extra + after)).unfold(1, span, block)
        mask = (padded[:, :, None, None, :] & near).flatten(0, 1)  # [B · blocks, 1, block, span]
    if beside is not None:
        rows = starts[:, None] * block + torch.arange(block, device=q.device) - before + window  # places among the keys
        seen = seen_beside(beside.places, rows, window, causal)  # [B or 1, blocks, block, n]
        if padding_mask is None and len(seen) > 1:
            raise AssertionError("rows have sinks of their own only where they are padded")
        seen = seen.expand(1 if padding_mask is None else batch, -1, -1, -1).flatten(0, 1).unsqueeze(1)
        mask = torch.cat([seen, mask], -1)
        first = (t.unsqueeze(2).expand(-1, -1, blocks, -1, -1) for t in (beside.k, beside.v))
        k, v = (torch.cat([_fold(t, padding_mask), held], -2) for t, held in zip(first, (k, v)))
    if use_matmul(q, k, v, kernel):
        out, _ = by_matmul(q, k, v, mask, scale, guard, 0.0, None, False)
    else:
        out = by_sdpa(q, k, v, mask, False, scale, guard)
    if padding_mask is None:
        out = out.unflatten(1, (batch, -1)).permute(1, 2, 0, 3, 4)
    else:
        out = out.unflatten(0, (batch, blocks)).transpose(1, 2)
    return out.flatten(2, 3)[:, :, :queries]


def _fold(t: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Compute [B, H, blocks, L, d] -> [blocks, B · H, L, d], or [B · blocks, H, L, d] where each row has its own
    mask."""
    if padding_mask is None:
        return t.permute(2, 0, 1, 3, 4).flatten(1, 2)
    return t.transpose(1, 2).flatten(0, 1)
