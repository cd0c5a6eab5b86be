"""Tri-vein attention from one form to the other: veins multiplied into the projections, or standing behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from blockyard.errors import InputError
from blockyard.vein.projector import orthonormal_rows

if TYPE_CHECKING:
    from blockyard.vein.attention import TVAAttention


def folded(attention: TVAAttention) -> TVAAttention:
    """See `TVAAttention.fold`."""
    if attention.form == "folded":
        raise InputError("this attention is folded already")
    made = attention.like("folded")
    with torch.no_grad():
        v, u, value_v, value_u = attention.veins()
        if attention.form == "shared":
            for name in ("q_proj", "k_proj", "v_proj"):
                getattr(made, name).weight.copy_(getattr(attention, name).weight @ v)
            made.output_proj.weight.copy_(u @ attention.output_proj.weight)
            return made
        for name, into in (("q_proj", v), ("k_proj", v), ("v_proj", value_v)):
            heads = getattr(attention, name).weight.unflatten(0, (attention.n_heads, -1))  # [H, head_dim, d_model]
            getattr(made, name).weight.copy_((into @ heads).flatten(0, 1))
        columns = attention.output_proj.weight.unflatten(1, (attention.n_heads, -1))  # [d_model, H, head_dim]
        made.output_proj.weight.copy_((columns @ value_u).flatten(1))
    return made


def unfolded(attention: TVAAttention) -> TVAAttention:
    """See `TVAAttention.unfold`."""
    if attention.form != "folded":
        raise InputError(f"only a folded attention can be unfolded; this one is {attention.form}")
    made = attention.like("factored")
    with torch.no_grad():
        for vein in (made.vein, made.value_vein):
            if vein is not None:
                # V Vᵀ = 1: what Vᵀ lifts, V brings back.
                for stored, matrix in zip(vein.stored(), (v := orthonormal_rows(vein.stored()[0]), v.mT)):
                    stored.copy_(matrix)
        v, _, value_v, _ = made.veins()
        for name, into in (("q_proj", v), ("k_proj", v), ("v_proj", value_v)):
            heads = getattr(attention, name).weight.unflatten(0, (attention.n_heads, -1))  # [H, rank, d_model]
            getattr(made, name).weight.copy_((into.mT @ heads).flatten(0, 1))
        columns = attention.output_proj.weight.unflatten(1, (attention.n_heads, -1))  # [d_model, H, v_rank]
        made.output_proj.weight.copy_((columns @ value_v).flatten(1))
    return made
