"""Dropout whose mask can be a pure function of (seed, step, sample), so that it does not depend on who computes it.

With keys set, a row's mask is the same whichever rank or micro-batch the row falls to, and a recomputed forward
(activation checkpointing) drops the same elements. Without keys it is ordinary dropout.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockyard.errors import InputError

_MASK32 = 0xFFFFFFFF


class Dropout(nn.Module):
    """Zeroes elements with probability p while training, scaling the rest by 1 / (1 − p).

    Args:
        p: probability in [0, 1).

    Shapes: x [B, ...] -> the same.
    """

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        if not 0.0 <= p < 1.0:
            raise InputError(f"dropout={p} should be at least 0 and below 1")
        self.p = p
        self.keys: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        return dropout(x, self.p, self.keys)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def dropout(x: Tensor, p: float, keys: Tensor | None) -> Tensor:
    """Drop elements of x [B, ...]; with keys (int64) the mask is a hash of row key and element index.

    Keys are [B], or [B, C] for rows that lie along the first two axes. One mask drops both parts of a complex element:
    two would turn what is left.
    """
    if x.is_complex():
        return x * dropout(torch.ones_like(x.real), p, keys)
    if keys is None:
        return F.dropout(x, p)
    if keys.shape != x.shape[: keys.ndim]:
        raise InputError(f"dropout has keys for {keys.shape[0]} rows, but the batch has {x.shape[0]}")
    index = torch.arange(x.shape[keys.ndim :].numel(), device=x.device)
    bits = mix(keys[..., None] ^ mix(index)).view(x.shape)
    keep = bits >= int(p * 2**32)
    return x * keep.to(x.dtype) / (1.0 - p)


def mix(bits: Tensor) -> Tensor:
    """Scramble 32-bit integers held in int64: two rounds of multiply and xor-shift."""
    for factor in (0x7FEB352D, 0x846CA68B):
        bits = ((bits ^ (bits >> 16)) * factor) & _MASK32
    return bits ^ (bits >> 16)


def set_dropout_keys(model: nn.Module, keys: Tensor | None) -> None:
    """Give every Dropout its own keys, derived from one key per row of the batch.

    Args:
        model: the module whose `Dropout`s are set.
        keys: int64 [B], one per sample, a function of (seed, step, global sample index); None unsets them.
    """
    for number, module in enumerate(m for m in model.modules() if isinstance(m, Dropout)):
        module.keys = None if keys is None else mix((keys + 0x9E3779B9 * (number + 1)) & _MASK32)


def split_dropout_keys(model: nn.Module, parts: int, kept: Tensor) -> None:
    """Give every part of a sample its own key, for a model that processes samples in parts.

    Args:
        model: the module whose `Dropout`s have keys of B samples (nothing happens without keys).
        parts: parts of each sample.
        kept: bool [B * parts], the parts that are processed, in the order of samples and then parts.
    """
    for module in model.modules():
        if isinstance(module, Dropout) and module.keys is not None and len(module.keys) * parts == len(kept):
            numbers = torch.arange(parts, device=module.keys.device)
            module.keys = mix(module.keys[:, None] ^ mix(numbers)).flatten()[kept]
