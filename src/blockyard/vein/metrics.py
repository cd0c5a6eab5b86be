"""What a vein block reports of its tokens: how far they are from the vein, how much of it they use."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def token_metrics(
    eps: Tensor, tau: Tensor, correction: Tensor, z: Tensor, padding_mask: Tensor | None = None
) -> dict[str, Any]:
    """Return means, the largest error and the directions in use, as scalars without a device sync.

    Args:
        eps: reconstruction error [B, T].
        tau: its threshold.
        correction: what was added to the tokens [B, T, d_model].
        z: the tokens in the vein [B, T, r].
        padding_mask: [B, T], nonzero = keep; the rest is left out. Behind a cache it covers past tokens, too.
    """
    over = (eps > tau).to(eps.dtype)
    size = torch.linalg.vector_norm(correction.to(eps.dtype), dim=-1)
    if padding_mask is None:
        share = torch.full_like(eps, 1 / eps.numel())
    else:
        keep = padding_mask[:, -eps.shape[1] :].to(eps.dtype)
        # Weights that add up to 1: no count has to be read from the device.
        share = keep / keep.sum().clamp_(min=1)
    return {
        "eps_mean": (eps * share).sum(),
        "eps_max": (eps * (share > 0)).amax(),
        "eps_frac_over_tau": (over * share).sum(),
        "correction_norm": (size * share).sum(),
        "effective_rank": _participation(z.to(eps.dtype), share),
    }


def _participation(z: Tensor, share: Tensor) -> Tensor:
    """Return how many directions carry z [..., r]: (Σ λ)² / Σ λ² of its second moments, 1 … r, tokens weighted by
    share."""
    # The participation ratio: r equal eigenvalues give r, a single one 1. Trace and sum of squares have it without an
    # eigenvalue being computed.
    moments = (z * share.unsqueeze(-1)).flatten(0, -2).mT @ z.flatten(0, -2)
    return moments.trace().square() / moments.square().sum().clamp(min=torch.finfo(moments.dtype).tiny)
