"""Scaled dot-product attention over any mix of masks, by the kernel that suits the length.

Plain matrix products win at short lengths on a CPU, `F.scaled_dot_product_attention` at long ones and on a GPU;
a causal sliding window is computed in blocks. Every path gives the same numbers, and a query that may see nothing
gives 0 with a zero gradient.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from blockyard.errors import InputError
from blockyard.layers import thin_attention
from blockyard.layers.derivatives import fused_or_plain, transformed
from blockyard.layers.dropout import dropout as drop

Kernel = Literal["auto", "matmul", "sdpa"]

# Keys up to which plain matrix products beat SDPA's CPU kernel, forward and backward, at head widths 4 to 64
# (benchmarks/attention.py). In float32 the kernel won at every length; in bfloat16 it has a large fixed cost.
MATMUL_UP_TO = {torch.float32: 0, torch.bfloat16: 512}
_MATMUL_UP_TO_ELSE = 512

# Up to this many queries the heads that share a key head are scored as further queries of it: one product instead of
# one per head, up to 3 times as fast in float32 and 4 in bfloat16 (benchmarks/grouped_decode.py).
FEW_QUERIES = 16


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    padding_mask: Tensor | None = None,
    attn_mask: Tensor | None = None,
    window: int | None = None,
    scale: float | None = None,
    kernel: Kernel = "auto",
    dropout: float = 0.0,
    dropout_keys: Tensor | None = None,
    return_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """softmax(q kᵀ · scale + mask) v, with fewer key than query heads if k and v have fewer.

    Args:
        q: [B, H, T, d]; with S > T keys, the queries are the last T positions.
        k: [B, H_kv, S, d], H_kv dividing H.
        v: [B, H_kv, S, d_v], or [B, 1, S, d_v] for values that all heads share.
        causal: position i sees keys up to i.
        padding_mask: [B, S], nonzero = keep.
        attn_mask: broadcastable to [B, H, T, S]; bool (True = attend) or additive, combined with the others.
        window: position i sees only keys less than `window` away.
        scale: factor of the scores, 1/sqrt(d) by default.
        kernel: "auto" decides by length and device.
        dropout: probability of dropping a weight.
        dropout_keys: see `blockyard.layers.dropout`.
        return_weights: also return the weights [B, H, T, S].
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    queries, keys = q.shape[-2], k.shape[-2]
    if padding_mask is not None:
        check_padding_mask(padding_mask, q.shape[0], keys)
    if window is not None:
        plain = attn_mask is None and not return_weights and not dropout
        if plain and causal and keys > queries + window - 1:
            # The oldest keys, which no query sees.
            keys = queries + window - 1
            k, v = k[:, :, -keys:], v[:, :, -keys:]
            padding_mask = None if padding_mask is None else padding_mask[:, -keys:]
        if plain and (causal or queries == keys) and keys > window_span(window, causal):
            return _windowed(q, k, v, causal, padding_mask, window, scale, kernel), None
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
    mask = combine_masks(q, k, causal=causal, padding_mask=padding_mask, attn_mask=attn_mask, window=window)
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
    if q.shape[-2] == 1:
        # SDPA is as fast in float32 and two to eight times faster in bfloat16.
        return False
    return k.shape[-2] <= MATMUL_UP_TO.get(q.dtype, _MATMUL_UP_TO_ELSE)


def _lengthwise(k: Tensor) -> bool:
    """Whether the values of one feature at all positions lie side by side (see `LayerCache`)."""
    return k.stride(-1) != 1 and k.stride(-2) == 1


def combine_masks(
    q: Tensor,
    k: Tensor,
    *,
    causal: bool,
    padding_mask: Tensor | None,
    attn_mask: Tensor | None,
    window: int | None,
) -> Tensor | None:
    """One mask that broadcasts to [B, H, T, S]: bool, or additive when `attn_mask` is; None if all see all."""
    queries, keys = q.shape[-2], k.shape[-2]
    mask: Tensor | None = None
    if (causal and queries > 1) or window is not None:
        distance = _distance(queries, keys, q.device)
        mask = distance >= 0 if causal else None
        if window is not None:
            near = distance < window if causal else distance.abs() < window
            mask = near if mask is None else mask & near
    if padding_mask is not None:
        check_padding_mask(padding_mask, q.shape[0], keys)
        keep = padding_mask.to(torch.bool)[:, None, None, :]
        mask = keep if mask is None else mask & keep
    if attn_mask is None:
        return mask
    check_attn_mask(attn_mask, (q.shape[0], q.shape[1], queries, keys))
    if attn_mask.dtype == torch.bool:
        return attn_mask if mask is None else mask & attn_mask
    attn_mask = attn_mask.to(q.dtype)
    return attn_mask if mask is None else attn_mask.masked_fill(~mask, float("-inf"))


def check_padding_mask(padding_mask: Tensor, batch: int, keys: int) -> None:
    """Raise InputError unless the mask is [batch, keys]."""
    if tuple(padding_mask.shape) != (batch, keys):
        raise InputError(
            f"padding_mask has shape {tuple(padding_mask.shape)}, expected {(batch, keys)} "
            "[batch, keys]; with a cache it covers past and new tokens"
        )


def check_attn_mask(attn_mask: Tensor, shape: tuple[int, int, int, int]) -> None:
    """Raise InputError unless the mask is bool or floating and broadcasts to [B, H, T, S]."""
    if attn_mask.dtype != torch.bool and not attn_mask.dtype.is_floating_point:
        raise InputError(
            f"attn_mask has dtype {attn_mask.dtype}; it should be bool (True = attend) or floating (added)"
        )
    sizes = zip(reversed(attn_mask.shape), reversed(shape))
    if attn_mask.ndim > 4 or any(given not in (1, wanted) for given, wanted in sizes):
        raise InputError(
            f"attn_mask has shape {tuple(attn_mask.shape)}, which does not broadcast to {shape} [B, H, T, S]"
        )


def _distance(queries: int, keys: int, device: torch.device) -> Tensor:
    # The queries are the last of the keys' positions.
    rows = torch.arange(keys - queries, keys, device=device)
    return rows[:, None] - torch.arange(keys, device=device)


def open_blind_rows(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Let queries that see nothing see all, so that softmax stays finite; also return who does see."""
    allowed = mask if mask.dtype == torch.bool else mask > float("-inf")
    sees = allowed.any(-1, keepdim=True)
    opened = mask | ~sees if mask.dtype == torch.bool else mask.masked_fill(~sees, 0.0)
    return opened, sees


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
    # The heads that share a key head are stacked along the queries, so that no key is copied.
    q = q.reshape(batch * key_heads, -1, width)
    k = k.reshape(batch * key_heads, keys, width)
    v = v.reshape(batch * v.shape[1], keys, -1)
    if mask is None:
        scores = torch.bmm(q * scale, k.transpose(1, 2))
    else:
        # Product, scale and mask in one call. A mask that is added costs a sixth of filling by a boolean one.
        bias = _as_bias(mask, q.dtype, (batch, key_heads, heads // key_heads, queries, keys))
        scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=scale)
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
    return out, weights.view(batch, heads, queries, keys) if return_weights else None


def _as_bias(mask: Tensor, dtype: torch.dtype, shape: tuple[int, int, int, int, int]) -> Tensor:
    """A mask as an additive [B · H_kv, groups · T, S], or [1, groups · T, S] when it is the same for all."""
    batch, key_heads, groups, queries, keys = shape
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, float("-inf"))
    mask = mask.to(dtype)
    mask = mask.view(*(1,) * (4 - mask.ndim), *mask.shape)
    if mask.shape[:2] == (1, 1):
        return mask[0].expand(groups, queries, keys).reshape(1, -1, keys)
    return mask.expand(batch, key_heads * groups, queries, keys).reshape(batch * key_heads, -1, keys)


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
    """What the kernel computes, in operations with second derivatives."""
    if causal:
        mask = combine_masks(q, k, causal=True, padding_mask=None, attn_mask=None, window=None)
    return _matmul_attention(q, k, v, mask, scale, False, 0.0, None, False)[0]


def _within(v: Tensor, k: Tensor) -> bool:
    """Whether the values are the first columns of the keys in memory, as those of a latent are."""
    if torch.compiler.is_compiling() or v.shape[-1] > k.shape[-1]:
        return False
    return v.data_ptr() == k.data_ptr() and v.stride() == k.stride() and v.shape[:-1] == k.shape[:-1]


def _fold_groups(q: Tensor, mask: Tensor | None, key_heads: int) -> tuple[Tensor, Tensor | None]:
    """q [B, H, T, d] as [B, H_kv, H / H_kv · T, d], and a mask to match."""
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
    """Queries that a sliding window scores together: few enough to score little in vain, enough to be a product."""
    # Forward and backward at windows of 64 to 1024 (benchmarks/window.py).
    return max(32, min(window, 64), window // 4)


def window_span(window: int, causal: bool) -> int:
    """Keys that a block of queries is scored against; up to that length the window is a mask, above it blocks."""
    return window_block(window) + window * (1 if causal else 2)


def windowed_pairs(tokens: int, window: int, causal: bool) -> int:
    """Query-key pairs that a sliding window scores over a whole sequence."""
    block, span = window_block(window), window_span(window, causal)
    return tokens * tokens if tokens <= span else block * -(-tokens // block) * span


def _windowed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool,
    padding_mask: Tensor | None,
    window: int,
    scale: float,
    kernel: Kernel,
) -> Tensor:
    """Blocks of queries, each against its own keys and a window before (and after) them: O(T · window).

    With a cache there are up to window − 1 keys in front of the queries.
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
    """[B, H, blocks, L, d] -> [blocks, B · H, L, d], or [B · blocks, H, L, d] where each row has its own mask."""
    if padding_mask is None:
        return t.permute(2, 0, 1, 3, 4).flatten(1, 2)
    return t.transpose(1, 2).flatten(0, 1)
