"""Heads of standard attention: what they turn by, and how they lie beside one another."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from blockyard.errors import InputError
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


def side_by_side(mixed: Tensor) -> Tensor:
    """Lay heads side by side: [B, H, T, v_dim] -> [B, T, H · v_dim]."""
    return mixed.transpose(1, 2).flatten(2)
