"""Masks and weights over the whole text where a windowed cache shows a part of it: the window, and sinks beside it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from blockyard.errors import InputError
from blockyard.nn.attention_masks import check_attn_mask
from blockyard.nn.attention_sinks import NOT_YET, Sinks
from blockyard.protocol.cache_sinks import SinkCache


def check_window(window: int | None, sinks: int) -> None:
    """Refuse a window below 1, sinks below 0, or sinks without a window."""
    if window is not None and window < 1:
        raise InputError(f"window={window} should be at least 1, or none")
    if sinks < 0 or (sinks and window is None):
        what = "should be 0 or more" if sinks < 0 else "stand beside a window: give one, or leave them out"
        raise InputError(f"sinks={sinks} {what}")


def sinks_beside(
    cache: SinkCache, hidden: int, heads: Callable[[dict[str, Tensor]], tuple[Tensor, Tensor]]
) -> Sinks | None:
    """Return what the new tokens see of the first ones beside what a cache shows of the window, `hidden` tokens on.

    Args:
        cache: after it has taken in the new tokens.
        hidden: tokens in front of what it shows.
        heads: makes keys and values [B, H, n, …] of what it holds of some tokens, by slot.
    """
    found = cache.first()
    if found is None:
        return None
    tensors, places = found
    # A token that has not come stays where nobody sees it. Rows that agree are shown no more than the last token sees.
    moved = torch.where(places < NOT_YET, places - hidden, NOT_YET)
    return Sinks(*heads(tensors), moved, all_seen=cache.rows_agree)


def visible(
    hidden: int,
    padding_mask: Tensor | None,
    attn_mask: Tensor | None,
    shape: tuple[int, int, int, int],
    beside: Sinks | None,
) -> tuple[Tensor | None, Tensor | None]:
    """Return masks of scores of that shape [B, H, T, S] without the `hidden` oldest tokens, which the cache does not
    show.

    Of the first tokens, kept beside them, the caller's mask has columns in front.
    """
    if padding_mask is not None:
        padding_mask = padding_mask[:, hidden:]
    if attn_mask is not None:
        check_attn_mask(attn_mask, shape)
        if attn_mask.ndim and attn_mask.shape[-1] > 1:
            shown = attn_mask[..., hidden:]
            if beside is not None:
                first = _at(attn_mask, _over_text(beside, hidden, shape[3]))
                shown = torch.cat([first, shown.expand(*first.shape[:-1], -1)], -1)
            attn_mask = shown
    return padding_mask, attn_mask


def _over_text(beside: Sinks, hidden: int, length: int) -> Tensor:
    """Return places of the sinks in the whole text [B or 1, n]; of one that has not come the last token's, as
    unseen."""
    return (beside.places + hidden).clamp(max=length - 1)


def _at(mask: Tensor, places: Tensor) -> Tensor:
    """Return the columns of a mask [..., S] at places [B or 1, n]: [..., n], for each row of the batch where rows
    differ."""
    if len(places) == 1:
        return mask[..., places[0]]
    mask = mask.view(*(1,) * (4 - mask.ndim), *mask.shape).expand(len(places), -1, -1, -1)
    return mask.gather(-1, places[:, None, None].expand(-1, *mask.shape[1:3], -1))


def over_all(weights: Tensor, hidden: int, beside: Sinks | None) -> Tensor:
    """Return weights of sinks and shown keys [B, H, T, n + S] as weights over the whole text [B, H, T, hidden + S]."""
    if beside is None:
        return F.pad(weights, (hidden, 0))
    count = beside.places.shape[1]
    first, weights = weights[..., :count], F.pad(weights[..., count:], (hidden, 0))
    places = _over_text(beside, hidden, weights.shape[-1])[:, None, None]
    # Added: where a window still holds the token its own column counts, and this one is 0.
    return weights.scatter_add(-1, places.expand(*weights.shape[:3], -1), first)
