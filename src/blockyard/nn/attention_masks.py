"""Masks of attention: causality, padding, windows and the caller's own, as one that broadcasts over the scores."""

from __future__ import annotations

import torch
from torch import Tensor

from blockyard.errors import InputError
from blockyard.nn.attention_sinks import first_kept


def combine_masks(
    q: Tensor,
    k: Tensor,
    *,
    causal: bool,
    padding_mask: Tensor | None,
    attn_mask: Tensor | None,
    window: int | None,
    sinks: int = 0,
    dtype: torch.dtype | None = None,
) -> Tensor | None:
    """Return one mask that broadcasts to [B, H, T, S]: bool, or additive when `attn_mask` is; None if all see all.

    An additive one is of `dtype`, that of the queries by default. With `sinks` the keys are all that there are, and the
    first so many kept ones are seen from beyond the window.
    """
    queries, keys = q.shape[-2], k.shape[-2]
    mask: Tensor | None = None
    # A graph that is exported meets every length, one query among them, of which the mask hides nothing.
    if (causal and (torch.compiler.is_exporting() or queries > 1)) or window is not None:
        distance = _distance(queries, keys, q.device)
        mask = distance >= 0 if causal else None
        if window is not None:
            near = distance < window if causal else distance.abs() < window
            if sinks and padding_mask is None:
                near = near | (torch.arange(keys, device=q.device) < sinks)
            elif sinks and padding_mask is not None:
                near = near | first_kept(padding_mask, sinks)[:, None, None, :]
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
    attn_mask = attn_mask.to(dtype or q.dtype)
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


def as_bias(mask: Tensor, dtype: torch.dtype, shape: tuple[int, int, int, int, int]) -> Tensor:
    """Return a mask as an additive [B · H_kv, groups · T, S], or [1, groups · T, S] when it is the same for all."""
    batch, key_heads, groups, queries, keys = shape
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, float("-inf"))
    mask = mask.to(dtype)
    mask = mask.view(*(1,) * (4 - mask.ndim), *mask.shape)
    if mask.shape[:2] == (1, 1):
        return mask[0].expand(groups, queries, keys).reshape(1, -1, keys)
    return mask.expand(batch, key_heads * groups, queries, keys).reshape(batch * key_heads, -1, keys)
