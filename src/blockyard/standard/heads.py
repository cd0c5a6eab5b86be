"""Heads of standard attention: what they turn by, and how they lie beside one another."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.nn.linear import hooked
from blockyard.nn.norms import RMSNorm
from blockyard.nn.rotary import RotaryPositionalEmbedding


def rope_of(
    layout: Literal["half", "interleaved", "none"],
    theta: float,
    head_dim: int,
    width: int | None,
    scaling: str | None,
    heads: int,
) -> RotaryPositionalEmbedding | None:
    """Make the rotation; of `heads` with angles of their own, side by side.

    Raises:
        InputError: for a width that is rotated nowhere, or that no head has.
    """
    if layout == "none":
        if width is not None:
            raise InputError(f"rope_dim={width} with rope='none': nothing is rotated; leave it out")
        return None
    if width is not None and not 2 <= width <= head_dim:
        raise InputError(f"rope_dim={width} should be at least 2 and at most head_dim={head_dim}")
    width = head_dim if width is None else width
    return RotaryPositionalEmbedding(theta, heads * width, layout=layout, scaling=scaling)


def by_head(table: Tensor, n_heads: int, n_kv_heads: int) -> Tensor:
    """Lay out a table of every key head's own angles [..., T, H_kv · w] for all heads: [..., T, H + H_kv, w]."""
    own = table.unflatten(-1, (n_kv_heads, -1))
    # Queries are turned as the key head that they meet.
    return torch.cat([own.repeat_interleave(n_heads // n_kv_heads, -2), own], -2)


def normed_whole(heads: Tensor, norm: nn.Module | None) -> Tensor:
    """Normalise heads [B, T, H, head_dim] over all of them together."""
    assert norm is not None
    found: Tensor = norm(heads.flatten(-2))
    return found.view(heads.shape)


def gains_of(
    q_norm: nn.Module | None, k_norm: nn.Module | None, n_heads: int, n_kv_heads: int
) -> tuple[Tensor, float] | None:
    """Return the gains of every head's own norm [H + H_kv, head_dim] and what is added to the mean square; None where
    they do not say all that the norms do."""
    if not (isinstance(q_norm, RMSNorm) and isinstance(k_norm, RMSNorm)) or hooked(q_norm) or hooked(k_norm):
        return None
    gains = [q_norm.weight.expand(n_heads, -1), k_norm.weight.expand(n_kv_heads, -1)]
    return torch.cat(gains), q_norm.eps


def normed_apart(qk: Tensor, q_norm: nn.Module | None, k_norm: nn.Module | None, n_heads: int, whole: bool) -> Tensor:
    """Normalise queries and keys [B, T, H + H_kv, head_dim] by calling the norms, if there are any; `whole` over all
    heads of a token at once."""
    if q_norm is None or k_norm is None:
        return qk
    q, k = qk[:, :, :n_heads], qk[:, :, n_heads:]
    if whole:
        return torch.cat([normed_whole(q, q_norm), normed_whole(k, k_norm)], dim=2)
    return torch.cat([q_norm(q), k_norm(k)], dim=2)


def side_by_side(mixed: Tensor) -> Tensor:
    """Lay heads side by side: [B, H, T, v_dim] -> [B, T, H · v_dim]."""
    return mixed.transpose(1, 2).flatten(2)
