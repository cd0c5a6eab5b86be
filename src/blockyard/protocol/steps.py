"""When a mixer may take a short way: one eager token behind a cache that only grows, as most calls are while text is
written."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from blockyard.nn.attention_kernels import HALF
from blockyard.nn.derivatives import transformed
from blockyard.protocol.cache import LayerCache


def one_token(x: Tensor, cache: Any, d_model: int) -> bool:
    """Return whether x is one token [batch, 1, d_model] of every sequence behind a plain cache of its own type, in full
    precision, without gradients, and neither compiled nor transformed."""
    # First what tells a step from a prompt, so that other calls lose no time here.
    if type(cache) is not LayerCache or x.shape != (cache.batch, 1, d_model):
        return False
    if x.dtype != cache.dtype or cache.dtype in HALF or torch.is_grad_enabled() or transformed():
        return False
    return not (torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type))
