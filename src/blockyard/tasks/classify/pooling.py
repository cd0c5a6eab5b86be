"""From one vector per position to one per row."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Pooling = Literal["mean", "last", "cls"]


def pool(x: Tensor, padding_mask: Tensor | None, how: Pooling) -> Tensor:
    """Pool over positions.

    Args:
        x: [B, T, D], real or complex.
        padding_mask: [B, T], nonzero = keep; a row that keeps nothing pools to 0.
        how: `mean` over what is kept; `last` position that is kept (it has seen all others in a causal model); `cls`,
            the first position, which a model prepends for the purpose.

    Returns: [B, D].
    """
    if how == "cls":
        return x[:, 0]
    if padding_mask is None:
        return x.mean(1) if how == "mean" else x[:, -1]
    kept = padding_mask.to(torch.bool)
    if how == "mean":
        total = (x * kept[..., None]).sum(1)
        return total / kept.sum(1, keepdim=True).clamp_min(1)
    # The largest index that is kept, wherever the padding stands.
    index = (kept * torch.arange(1, kept.shape[1] + 1, device=x.device)).amax(1) - 1
    found = x[torch.arange(x.shape[0], device=x.device), index.clamp_min(0)]
    return found * (index >= 0)[:, None]
