"""Adding a thin product to the residual stream.

Layers that are far thinner than the residual stream spend their time in passes over [rows, d_model], not in
arithmetic: a pass saved is what makes them faster.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def add_linear(x: Tensor, z: Tensor, weight: Tensor, *, owned: bool = False) -> Tensor:
    """x + z Wᵀ as one product that accumulates.

    Args:
        x: [..., d_out].
        z: [..., d_in].
        weight: W, [d_out, d_in].
        owned: x is the caller's own intermediate result, and may be overwritten where no gradient needs it.
    """
    # Autocast would round the residual stream; a compiler fuses the sum itself.
    plain = x.dtype == z.dtype == weight.dtype and not torch.is_autocast_enabled(x.device.type)
    if not plain or torch.compiler.is_compiling():
        return x + F.linear(z, weight)
    rows, z = x.reshape(-1, x.shape[-1]), z.reshape(-1, z.shape[-1])
    if owned and not torch.is_grad_enabled() and x.is_contiguous():
        torch.addmm(rows, z, weight.mT, out=rows)
        return x
    return torch.addmm(rows, z, weight.mT).view(x.shape)
