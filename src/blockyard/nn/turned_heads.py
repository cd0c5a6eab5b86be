"""Queries and keys normalised and turned by their positions, in one pass forward and one backward.

QK-norm (arXiv 2010.04245) and rotary positions (arXiv 2104.09864) follow one another on the same numbers. Apart, each
widens them to float32, makes several tensors of them and rounds the result; together they round once, and some rows at
a time stay in the processor's cache from the first operation to the last.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from blockyard.nn.derivatives import HandWritten, hand_written, keep, transformed
from blockyard.nn.norms import widened
from blockyard.nn.rotary import RotaryPositionalEmbedding, rotate

# Numbers of a piece: in float32 and several times over it stays in the cache of a core.
_PIECE = 2**17


def suits(x: Tensor, cos: Tensor, sin: Tensor, rope: RotaryPositionalEmbedding | None) -> bool:
    """Return whether heads x [B, T, H, d] with these angles [T, 1, d/2] are best turned so; compilers fuse the two
    operations themselves."""
    if x.device.type != "cpu" or torch.compiler.is_compiling() or transformed() or not torch.is_grad_enabled():
        return False
    if rope is None or rope.layout != "half" or cos.requires_grad or sin.requires_grad:
        return False
    return cos.ndim == 3 and cos.shape[1] == 1 and 2 * cos.shape[-1] == x.shape[-1]


def norm_and_turn(x: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    """Compute rotate(x / sqrt(mean(x²) + eps) · gain), pairs half a head apart, in float32 at least.

    Args:
        x: [B, T, H, d].
        gain: [H, d].
        cos: [T, 1, d/2].
        sin: likewise.
        eps: added to the mean square.

    Returns: [B, T, H, d] in x's type.
    """
    turned: Tensor = hand_written(_NormAndTurn, x, gain, cos, sin, eps)
    return turned


def _defined(x: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    wide = widened(x)
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * gain
    return rotate(normed, cos, sin, "half").to(x.dtype)


class _NormAndTurn(HandWritten):
    plain = staticmethod(_defined)

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
        keep(ctx, (x, gain, cos, sin), (eps,))
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        first, second = _tables(gain, cos, sin)
        for rows in _pieces(x):
            normed, _ = _normed(x[rows], eps)
            out[rows] = _turned(normed, first, second)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, cos, sin = ctx.saved_tensors
        (eps,) = ctx.settings
        grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
        grad_gain = torch.zeros_like(widened(gain))
        ones = torch.ones_like(gain, dtype=cos.dtype)
        # Turned back: by the opposite angle.
        first, second = _tables(ones, cos, -sin)
        for rows in _pieces(x):
            normed, inverse = _normed(x[rows], eps)
            slope = _turned(grad[rows].to(normed.dtype), first, second)
            along = slope * normed
            grad_gain += along.flatten(0, 1).sum(0)
            # What is along x is projected out, as in RMSNorm.
            along = along.mul_(gain).mean(-1, keepdim=True)
            grad_x[rows] = slope.mul_(gain).addcmul_(normed, along, value=-1.0).mul_(inverse)
        return grad_x, grad_gain.to(gain.dtype), None, None, None


def _tables(gain: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Return what each number is multiplied by, and what its partner is, both [T, H, d]."""
    half = cos.shape[-1]
    partners = torch.cat([gain[..., half:], gain[..., :half]], dim=-1)
    return gain * torch.cat([cos, cos], dim=-1), partners * torch.cat([-sin, sin], dim=-1)


def _normed(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return x / sqrt(mean(x²) + eps) [b, T, H, d], widened, and 1 / sqrt(…)."""
    wide = widened(x)
    inverse = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    inverse = inverse.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return wide * inverse, inverse


def _turned(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Compute x · first + partners of x · second, [b, T, H, d]."""
    out, half = x * first, x.shape[-1] // 2
    out[..., :half].addcmul_(x[..., half:], second[..., :half])
    out[..., half:].addcmul_(x[..., :half], second[..., half:])
    return out


def _pieces(x: Tensor) -> Iterator[slice]:
    """Yield rows of the batch that are computed at a time."""
    at_a_time = max(1, _PIECE // max(1, x[0].numel()))
    for start in range(0, len(x), at_a_time):
        yield slice(start, start + at_a_time)
