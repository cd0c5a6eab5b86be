"""The first tokens of a sequence, seen beside a sliding window.

Trained models give a large part of their attention to the first tokens (attention sinks, StreamingLLM, arXiv
2309.17453); a window that drops them loses far more than what stood in them. Here their keys stand in columns of their
own in front of the window's, and a query sees them there exactly when its window has left them: so none counts twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# The place of a token that has not come yet: beyond every window, so that no query sees it.
NOT_YET = 1 << 62


@dataclass(frozen=True)
class Sinks:
    """Keys and values of the first kept tokens of each row.

    Attributes:
        k: [B, H_kv, n, d].
        v: [B, H_kv, n, d_v].
        places: where they stand, int64 [B, n], or [1, n] where all rows agree: counted from the first of the keys that
            stand beside them, negative for tokens in front of these; `NOT_YET` for one that has not come.
        all_seen: whether the last query is known to see all of them, so that a single one needs no mask.
    """

    k: Tensor
    v: Tensor
    places: Tensor
    all_seen: bool = False


def first_kept(padding_mask: Tensor, sinks: int) -> Tensor:
    """Return which tokens are the first `sinks` kept ones of their row: bool [B, S], of a padding mask [B, S]."""
    keep = padding_mask.to(torch.bool)
    return keep & (keep.cumsum(-1) <= sinks)


def places_of_first(padding_mask: Tensor | None, sinks: int, keys: int, device: torch.device) -> Tensor:
    """Return where the first kept tokens stand, in order: int64 [B, sinks], [1, sinks] without padding; `NOT_YET` for
    those that are missing."""
    steps = torch.arange(keys, device=device)
    if padding_mask is None:
        found = steps[:sinks].unsqueeze(0)
    else:
        # What is no sink goes behind all others.
        found = torch.where(first_kept(padding_mask, sinks), steps, NOT_YET).sort(-1).values[:, :sinks]
    missing = found.new_full((len(found), max(0, sinks - keys)), NOT_YET)
    return torch.cat([found, missing], -1)


def sinks_of(k: Tensor, v: Tensor, padding_mask: Tensor | None, sinks: int) -> Sinks:
    """Return the sinks among keys [B, H_kv, S, d] and values that begin with the sequence's first token."""
    keys = k.shape[2]
    places = places_of_first(padding_mask, min(sinks, keys), keys, k.device)
    if padding_mask is None:
        return Sinks(k[:, :, : places.shape[1]], v[:, :, : places.shape[1]], places)
    # A missing one reads any token: nobody sees it.
    at = places.clamp(max=keys - 1)[:, None, :, None]
    first, values = (t.gather(2, at.expand(-1, t.shape[1], -1, t.shape[3])) for t in (k, v))
    return Sinks(first, values, places)


def seen_beside(places: Tensor, rows: Tensor, window: int, causal: bool) -> Tensor:
    """Return which sinks the queries see in their own columns: those that their window does not hold.

    Args:
        places: int64 [B or 1, n], see `Sinks`.
        rows: places of the queries [...], counted as `places` are.
        window: as for `attend`.
        causal: as for `attend`.

    Returns: bool [B or 1, ..., n].
    """
    places = places.view(len(places), *(1,) * rows.ndim, -1)
    distance = rows.unsqueeze(-1) - places
    return distance >= window if causal else (distance.abs() >= window) & (places < NOT_YET)
