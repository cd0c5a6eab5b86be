"""Absorbing up-projections: queries meet latents instead of keys, and means of latents become means of values.

q · (W_uk c) = (W_ukᵀ q) · c and Σ p (W_uv c) = W_uv (Σ p c) (DeepSeek-V2, arXiv 2405.04434, section 2.1.2). Which side
the matrix multiplies is a matter of counting: there are as many latents as tokens, and at a decoding step one query.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from blockyard.errors import InputError

# Which of the up-projections are absorbed into the queries and the output, instead of expanding every latent.
Form = Literal["naive", "values", "both"]


def absorbing_pays(queries: int, keys: int, rank: int, *widths: int) -> bool:
    """Return whether absorbing up-projections from `rank` to these widths takes fewer FLOPs than expanding every
    latent.

    Expanding costs rank · width for each key, and then width for each pair of query and key; absorbing costs
    rank · width for each query, and then rank for each pair. Against many keys it pays for fewer than
    rank · (nope + v) / (2 · rank − nope − v) queries, and always where 2 · rank ≤ nope + v.

    Args:
        queries: number of queries.
        keys: number of latents they meet.
        rank: width of a latent.
        widths: what is expanded per head: nope and v, or one of them.
    """
    # Products alone: softmax and masks are the same either way.
    expanded = keys * rank * sum(widths) + queries * keys * sum(widths)
    absorbed = queries * rank * sum(widths) + queries * keys * rank * len(widths)
    return absorbed < expanded


def cheapest_form(queries: int, keys: int, rank: int, nope_dim: int | None, v_dim: int) -> Form:
    """Return what to absorb to spend the fewest FLOPs.

    Args:
        queries: number of queries.
        keys: number of latents they meet.
        rank: width of a latent.
        nope_dim: width per head of the keys from the latent; None where they cannot be absorbed.
        v_dim: width per head of the values.
    """

    def pays(*widths: int) -> bool:
        return absorbing_pays(queries, keys, rank, *widths)

    # Together with the values, and by themselves: a saving on values alone does not pay for wider scores.
    if nope_dim is not None and pays(nope_dim, v_dim) and pays(nope_dim):
        return "both"
    return "values" if pays(v_dim) else "naive"


def per_head(x: Tensor, matrices: Tensor) -> Tensor:
    """Compute x [B, H, T, a] times a matrix per head [H, a, b] -> [B, H, T, b], without copying matrices for the
    batch."""
    batch, heads, length, width = x.shape
    # Heads in front, so that a batched product takes each matrix once for the whole batch.
    out = torch.bmm(x.transpose(0, 1).reshape(heads, batch * length, width), matrices)
    return out.view(heads, batch, length, -1).transpose(0, 1)


def check_absorbing(decode: str, cache: str, *, decoupled: bool) -> None:
    """Refuse absorbing where nothing can be absorbed.

    Args:
        decode: the option: auto, absorbed or naive.
        cache: the option: latent or expanded.
        decoupled: whether the rotary key stands beside the latent.

    Raises:
        InputError: saying what stands in the way.
    """
    if decode == "absorbed" and not decoupled:
        raise InputError(
            "decode='absorbed' with rope='full': the rotation stands between queries and W_uk, which cannot be "
            "absorbed; use rope='decoupled', or decode='auto'"
        )
    if decode == "absorbed" and cache == "expanded":
        raise InputError(
            "decode='absorbed' with cache='expanded': expanded keys and values leave nothing to absorb; "
            "use cache='latent', or decode='auto'"
        )


def isometries(heads: int, width: int, rank: int) -> Tensor:
    """Return random [heads, width, rank] of orthogonal rows (or columns, if fewer); W c has the mean square of c."""
    # In float32: half precision has no QR.
    q, r = torch.linalg.qr(torch.randn(heads, max(width, rank), min(width, rank), dtype=torch.float32))
    # QR alone would prefer some signs.
    q = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    return q * (width / rank) ** 0.5 if width > rank else q.mT
