"""Scaled dot-product attention over any mix of masks, by the kernel that suits the length.

Plain matrix products win at short lengths on a CPU, `F.scaled_dot_product_attention` at long ones and on a GPU;
a causal sliding window is computed in blocks. Every path gives the same numbers, and a query that may see nothing
gives 0 with a zero gradient. Scores and softmax are float32 at least, whatever the inputs are: rounded to 8 bits, a
score of 16 errs by up to a thirty-second, and its weight by that part.
"""

from __future__ import annotations

import contextlib
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from blockyard.nn import thin_attention
from blockyard.nn.attention_masks import as_bias, check_padding_mask, combine_masks, open_blind_rows
from blockyard.nn.attention_sinks import Sinks, seen_beside, sinks_of
from blockyard.nn.derivatives import HandWritten, fused_or_plain, hand_written, transformed
from blockyard.nn.dropout import dropout as drop
from blockyard.nn.norms import widened

Kernel = Literal["auto", "matmul", "sdpa"]

HALF = (torch.bfloat16, torch.float16)
# Keys up to which plain matrix products beat SDPA's CPU kernel, forward and backward, at head widths 4 to 64, one
# thread (benchmarks/attention.py). In float32 the kernel won at every length (x86 with AMX). In half precision the
# products have float32 scores, of converted inputs (a CPU has no half-precision product with a float32 result): on an
# AMD EPYC (Zen 4, AVX-512 with bf16, no AMX) they take 0.2 to 0.5 of SDPA's time in bfloat16 at 32 to 128 keys, 0.65 to
# 0.95 at 512, and 1.1 to 1.5 of what products with bfloat16 scores would take. Forward alone they win up to 128 keys
# (0.75 to 0.9), at 512 they take 1.0 to 1.3 times as long.
MATMUL_UP_TO = {torch.float32: 0}
_MATMUL_UP_TO_ELSE, _HALF_FORWARD_UP_TO = 512, 128

# Up to this many queries the heads that share a key head are scored as further queries of it: one product instead of
# one per head, up to 3 times as fast in float32 and 4 in bfloat16 (benchmarks/grouped_decode.py).
FEW_QUERIES = 16
# Few queries in half precision meet keys that are converted so many numbers at a time, which stay in the processor's
# cache: on that processor a step takes 0.2 to 0.4 of SDPA's time in bfloat16 behind 128 to 8192 tokens of 8 heads, 0.9
# to 1.1 with keys that all heads share, and 1.1 to 1.5 of what products with bfloat16 scores would take.
_CONVERTED = 1 << 20


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    padding_mask: Tensor | None = None,
    attn_mask: Tensor | None = None,
    window: int | None = None,
    sinks: int = 0,
    beside: Sinks | None = None,
    scale: float | None = None,
    kernel: Kernel = "auto",
    dropout: float = 0.0,
    dropout_keys: Tensor | None = None,
    return_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Compute softmax(q kᵀ · scale + mask) v, with fewer key than query heads if k and v have fewer.

    Args:
        q: [B, H, T, d]; with S > T keys, the queries are the last T positions.
        k: [B, H_kv, S, d], H_kv dividing H.
        v: [B, H_kv, S, d_v], or [B, 1, S, d_v] for values that all heads share.
        causal: position i sees keys up to i.
        padding_mask: [B, S], nonzero = keep.
        attn_mask: broadcastable to [B, H, T, S]; bool (True = attend) or additive, combined with the others.
        window: position i sees only keys less than `window` away.
        sinks: with a window, the first so many kept keys are seen from everywhere; k then holds the whole sequence.
        beside: those keys where k no longer begins with the sequence's first one. Masks and weights then have their
            columns in front of those of k; a padding mask is of k alone.
        scale: factor of the scores, 1/sqrt(d) by default.
        kernel: "auto" decides by length and device.
        dropout: probability of dropping a weight.
        dropout_keys: see `blockyard.nn.dropout`.
        return_weights: also return the weights [B, H, T, S].
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    queries, keys = q.shape[-2], k.shape[-2]
    if padding_mask is not None:
        check_padding_mask(padding_mask, q.shape[0], keys)
    if window is not None:
        plain = attn_mask is None and not return_weights and not dropout
        if plain and beside is None and sinks and keys > min(queries + window - 1, window_span(window, causal)):
            beside = sinks_of(k, v, padding_mask, sinks)
        if plain and causal and keys > queries + window - 1:
            # The oldest keys, which no query sees.
            dropped, keys = keys - (queries + window - 1), queries + window - 1
            k, v = k[:, :, -keys:], v[:, :, -keys:]
            padding_mask = None if padding_mask is None else padding_mask[:, -keys:]
            beside = None if beside is None else Sinks(beside.k, beside.v, beside.places - dropped)
        if plain and (causal or queries == keys) and keys > window_span(window, causal):
            return _windowed(q, k, v, causal, padding_mask, window, scale, kernel, beside), None
        if beside is not None:
            mask = _mask_with_sinks(q, k, beside, causal, padding_mask, window, attn_mask)
            k, v = torch.cat([beside.k, k], 2), torch.cat([beside.v, v], 2)
            return attend(
                q,
                k,
                v,
                attn_mask=mask,
                scale=scale,
                kernel=kernel,
                dropout=dropout,
                dropout_keys=dropout_keys,
                return_weights=return_weights,
            )
        # The one query of a decoding step is the last position and sees what is left.
        if window >= keys:
            window = None
    # Only the caller's masks can leave a query with nothing to see.
    guard = padding_mask is not None or attn_mask is not None
    matmul = return_weights or dropout > 0 or _use_matmul(q, k, v, kernel)
    if causal and not matmul and not guard and window is None and queries == keys and queries > 1:
        if kernel == "auto" and thin_attention.suits(q, k, v):
            return thin_attention.thin_attention(q, k, v, scale), None
        # A square causal mask alone is a flag to SDPA: no T x T mask is made, and its fast path skips half the work.
        return _sdpa(q, k, v, None, True, scale, False), None
    # SDPA's CPU kernel takes a mask in float32, too; another's has to be as the queries are.
    dtype = torch.float32 if q.dtype in HALF and (matmul or q.device.type == "cpu") else q.dtype
    mask = combine_masks(
        q, k, causal=causal, padding_mask=padding_mask, attn_mask=attn_mask, window=window, sinks=sinks, dtype=dtype
    )
    if matmul:
        return _matmul_attention(q, k, v, mask, scale, guard, dropout, dropout_keys, return_weights)
    return _sdpa(q, k, v, mask, False, scale, guard), None


def _use_matmul(q: Tensor, k: Tensor, v: Tensor, kernel: Kernel) -> bool:
    # No other kernel has a formula for forward mode and for batches of batches.
    if transformed():
        return True
    if kernel != "auto":
        return kernel == "matmul"
    if q.device.type != "cpu":
        return False
    if q.shape[-2] <= FEW_QUERIES and (k.shape[1] != v.shape[1] or (q.shape[-1] != v.shape[-1] and not _within(v, k))):
        # Decoding: SDPA would copy the whole cache to expand shared values or to pad them.
        return True
    if q.shape[-2] <= FEW_QUERIES and _lengthwise(k):
        # Rows of a cache laid out for this: five times as fast as SDPA for heads 4 wide, twice for 32.
        return True
    if q.dtype in HALF and not torch.is_grad_enabled():
        return q.shape[-2] <= FEW_QUERIES or k.shape[-2] <= _HALF_FORWARD_UP_TO
    if q.shape[-2] == 1:
        # SDPA is as fast.
        return False
    return k.shape[-2] <= MATMUL_UP_TO.get(q.dtype, _MATMUL_UP_TO_ELSE)


def as_given(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return a context in which products keep the precision of their inputs, also under autocast."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def _lengthwise(k: Tensor) -> bool:
    """Return whether the values of one feature at all positions lie side by side (see `LayerCache`)."""
    return k.stride(-1) != 1 and k.stride(-2) == 1


def _matmul_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
    guard: bool,
    dropout: float,
    dropout_keys: Tensor | None,
    return_weights: bool,
) -> tuple[Tensor, Tensor | None]:
    batch, heads, queries, width = q.shape
    key_heads, keys = k.shape[1], k.shape[2]
    sees = None
    if guard and mask is not None:
        mask, sees = open_blind_rows(mask)
    dtype = q.dtype
    wide = torch.float32 if dtype in HALF else dtype
    # The heads that share a key head are stacked along the queries, so that no key is copied.
    q = q.reshape(batch * key_heads, -1, width)
    k = k.reshape(batch * key_heads, keys, width)
    v = v.reshape(batch * v.shape[1], keys, -1)
    bias = None if mask is None else as_bias(mask, wide, (batch, key_heads, heads // key_heads, queries, keys))
    eager = not (torch.is_grad_enabled() or torch.compiler.is_compiling() or dropout or return_weights)
    if eager and wide != dtype and queries <= FEW_QUERIES and len(k) == len(v):
        out = _few_queries(q, k, v, bias, scale).view(batch, heads, queries, -1)
        return out if sees is None else out.masked_fill(~sees, 0.0), None
    with as_given(q.device):
        if wide != dtype and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            scores = hand_written(_WideScores, q, k, bias, scale)
        else:
            scores = _scores(q.to(wide), k.to(wide), bias, scale)
        weights = scores.softmax(-1)
    if sees is not None:
        weights = weights.view(batch, heads, queries, keys).masked_fill(~sees, 0.0).view(weights.shape)
    if dropout:
        dropped = drop(weights.view(batch, heads, queries, keys), dropout, dropout_keys).view(weights.shape)
    else:
        dropped = weights
    # The heads that share values are stacked, too.
    dropped = dropped.to(v.dtype).view(v.shape[0], -1, keys)
    out = torch.bmm(dropped, v).view(batch, heads, queries, -1)
    return out, weights.view(batch, heads, queries, keys).to(dtype) if return_weights else None


def _scores(q: Tensor, k: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Return q kᵀ · scale + bias, all [rows, ...]."""
    if bias is None:
        return torch.bmm(q * scale, k.transpose(1, 2))
    # Product, scale and mask in one call. A mask that is added costs a sixth of filling by a boolean one.
    return torch.baddbmm(bias, q, k.transpose(1, 2), alpha=scale)


def _wide_scores(q: Tensor, k: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    return _scores(widened(q), widened(k), bias, scale)


class _WideScores(HandWritten):
    """Float32 scores of half-precision queries and keys, whose gradients are products in half precision, as SDPA's.

    By conversions alone the backward pass would go through float32 products, which take twice as long.
    """

    differentiable = True
    plain = staticmethod(_wide_scores)

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        ctx.scale, ctx.bias_shape = scale, None if bias is None else bias.shape
        ctx.save_for_backward(q, k)
        return _wide_scores(q, k, bias, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k = ctx.saved_tensors
        half, none = grad.to(q.dtype), q.new_zeros(1)
        grad_q = torch.baddbmm(none, half, k, beta=0, alpha=ctx.scale)
        grad_k = torch.baddbmm(none, half.mT, q, beta=0, alpha=ctx.scale)
        grad_bias = grad.sum_to_size(ctx.bias_shape) if ctx.needs_input_grad[2] else None
        return grad_q, grad_k, grad_bias, None


def _few_queries(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Return attention of few queries in half precision, in float32 throughout and without gradients: [rows, queries,
    d_v].

    Rows are converted in pieces, see `_CONVERTED`.
    """
    out = q.new_empty(*q.shape[:2], v.shape[2])
    piece = max(1, _CONVERTED // (k.shape[1] * k.shape[2]))
    with as_given(q.device):
        for start in range(0, len(q), piece):
            rows = slice(start, start + piece)
            part = bias if bias is None or len(bias) == 1 else bias[rows]
            weights = _scores(q[rows].float(), k[rows].float(), part, scale).softmax(-1)
            out[rows] = torch.bmm(weights, v[rows].float())
    return out


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float, guard: bool) -> Tensor:
    sees = None
    if guard and mask is not None:
        mask, sees = open_blind_rows(mask)
    if _lengthwise(k):
        # The kernel wants tokens whole.
        k, v = k.contiguous(), v.contiguous()
    shape = q.shape
    if q.shape[1] != k.shape[1] and q.shape[2] <= FEW_QUERIES and not causal:
        q, mask = _fold_groups(q, mask, k.shape[1])
    grouped = q.shape[1] != k.shape[1]
    if v.shape[1] != k.shape[1]:
        v = v.expand(-1, k.shape[1], -1, -1)
    width, extra = v.shape[-1], q.shape[-1] - v.shape[-1]
    # The flag is the CPU kernel's too; a compiler cannot read it.
    flash = torch.compiler.is_compiling() or torch.backends.cuda.flash_sdp_enabled()
    if extra and flash and q.device.type == "cpu":
        # The flash kernel gives up on unequal widths; zero columns cost less than its replacement.
        if extra > 0:
            # Latents are their own padding: what stands beside the values gives columns that are cut off below.
            v = k if _within(v, k) else F.pad(v, (0, extra))
        else:
            q, k = F.pad(q, (0, -extra)), F.pad(k, (0, -extra))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped)
    out = fused_or_plain(out, _by_products, (q, k, v, mask), (causal, scale))
    out = out[..., :width]
    if out.shape[:3] != shape[:3]:
        out = out.reshape(*shape[:3], width)
    return out if sees is None else out.masked_fill(~sees, 0.0)


def _by_products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    """Return what the kernel computes, in operations with second derivatives."""
    if causal:
        mask = combine_masks(q, k, causal=True, padding_mask=None, attn_mask=None, window=None)
    return _matmul_attention(q, k, v, mask, scale, False, 0.0, None, False)[0]


def _within(v: Tensor, k: Tensor) -> bool:
    """Return whether the values are the first columns of the keys in memory, as those of a latent are."""
    if torch.compiler.is_compiling() or v.shape[-1] > k.shape[-1]:
        return False
    return v.data_ptr() == k.data_ptr() and v.stride() == k.stride() and v.shape[:-1] == k.shape[:-1]


def _fold_groups(q: Tensor, mask: Tensor | None, key_heads: int) -> tuple[Tensor, Tensor | None]:
    """Compute q [B, H, T, d] as [B, H_kv, H / H_kv · T, d], and a mask to match."""
    batch, heads, queries, width = q.shape
    groups = heads // key_heads
    q = q.reshape(batch, key_heads, groups * queries, width)
    if mask is None:
        return q, None
    mask = mask.view(*(1,) * (4 - mask.ndim), *mask.shape)
    rows, own, _, keys = mask.shape
    if own == 1 and queries == 1:
        return q, mask
    if mask.dtype == torch.bool:
        # What is written out once for each group should not have to be converted again in the kernel.
        mask = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(~mask, float("-inf"))
    if own == 1:
        return q, mask.unsqueeze(2).expand(rows, 1, groups, queries, keys).reshape(rows, 1, groups * queries, keys)
    return q, mask.expand(rows, heads, queries, keys).reshape(rows, key_heads, groups * queries, keys)


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


def _mask_with_sinks(
    q: Tensor,
    k: Tensor,
    beside: Sinks,
    causal: bool,
    padding_mask: Tensor | None,
    window: int,
    attn_mask: Tensor | None,
) -> Tensor | None:
    """The mask of sinks and of the keys behind them, [B or 1, 1, T, n + S] or as the caller's broadcasts; None if one
    query sees all."""
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


def _windowed(
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
    if _use_matmul(q, k, v, kernel):
        out, _ = _matmul_attention(q, k, v, mask, scale, guard, 0.0, None, False)
    else:
        out = _sdpa(q, k, v, mask, False, scale, guard)
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
