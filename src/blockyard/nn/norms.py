"""Normalisation over the last axis: RMSNorm (arXiv 1910.07467) and LayerNorm (arXiv 1607.06450).

RMSNorm is written fused here because torch's own is slow on CPU: measured forward + backward of 4096 x 384 in
eager mode, F.rms_norm takes about nine times as long as F.layer_norm. Of the few tokens of a decoding step it is the
faster one (128 numbers, AMD EPYC, Zen 4: 10.6 and 15.5 microseconds; 16 rows of 2048 alike), and taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockyard.errors import one_of
from blockyard.nn.derivatives import HandWritten, hand_written, keep, transformed


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x²) + eps) · weight, computed in at least float32 and cast back.

    Args:
        d_model: width of the last axis.
        eps: added to the mean square.

    Shapes: x [..., d_model] -> the same shape and dtype.
    """

    def __init__(
        self,
        d_model: int,
        eps: float = 1e-5,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, eps={self.eps}"


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Compute x / sqrt(mean(x²) + eps) · weight over the last axis; weight may have any trailing axes of x."""
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        # Without gradients the wrapper alone would double the time of one token.
        if torch.is_grad_enabled() or transformed():
            return hand_written(_FusedRMSNorm, x, weight, eps)
        # Of a token or some torch's own takes two thirds of the time, which are calls; of many it is slow.
        if weight.ndim == 1 and x.dtype == weight.dtype == torch.float32 and x.numel() <= _FEW:
            return F.rms_norm(x, weight.shape, weight, eps)
        return _normalised(x, weight, eps)[0]
    # Compilers fuse the definition; in eager mode it would make five passes over x.
    return _defined(x, weight, eps)


# Numbers up to which a norm costs calls rather than passes over them.
_FEW = 2**14


def widened(x: Tensor) -> Tensor:
    """Return x in at least float32."""
    return x if x.dtype == torch.float64 else x.float()


def _defined(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = widened(x)
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def _normalised(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return RMSNorm in as few passes as eager mode allows, and 1 / rms."""
    wide = widened(x)
    inverse = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    inverse = inverse.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (wide * inverse).mul_(weight).to(x.dtype), inverse


class _FusedRMSNorm(HandWritten):
    """RMSNorm with a hand-written backward, some rows at a time: what one operation makes is still in the processor's
    cache when the next one reads it."""

    plain = staticmethod(_defined)

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rows = x.reshape(-1, *weight.shape)
        pieces = list(_pieces(rows))
        if len(pieces) == 1:
            out, inverse = _normalised(x, weight, eps)
        else:
            made, inverse = torch.empty_like(rows), rows.new_empty(*rows.shape[:-1], 1, dtype=widened(rows[:0]).dtype)
            for some in pieces:
                made[some], inverse[some] = _normalised(rows[some], weight, eps)
            out = made.view(x.shape)
        keep(ctx, (x, weight), (eps,), inverse)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse = ctx.saved_tensors
        rows, grads, inverses = (t.reshape(-1, *weight.shape[:-1], t.shape[-1]) for t in (x, grad, inverse))
        pieces = list(_pieces(rows))
        if len(pieces) == 1:
            # The usual case of a small model: nothing to be put together.
            grad_x, grad_weight = _slopes(rows, grads, inverses, weight)
            return grad_x.view(x.shape).to(x.dtype), grad_weight.to(weight.dtype), None
        grad_x, grad_weight = torch.empty_like(rows), torch.zeros_like(widened(weight))
        for some in pieces:
            grad_x[some], part = _slopes(rows[some], grads[some], inverses[some], weight)
            grad_weight += part
        return grad_x.view(x.shape), grad_weight.to(weight.dtype), None


def _slopes(rows: Tensor, grads: Tensor, inverses: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of rows, before they are rounded, and of the weight."""
    normed, grads = widened(rows) * inverses, widened(grads)
    along = grads * normed
    grad_weight = along.sum(0)
    # d/dx of x/rms(x): the part of the gradient along x is projected out.
    along = along.mul_(weight).mean(-1, keepdim=True)
    return (grads * weight).addcmul_(normed, along, value=-1.0).mul_(inverses), grad_weight


# Numbers of a piece: in float32 and several times over it stays in the cache of a core.
_PIECE = 2**18


def _pieces(rows: Tensor) -> Iterator[slice]:
    at_a_time = max(1, _PIECE // max(1, rows[:1].numel()))
    for start in range(0, len(rows), at_a_time):
        yield slice(start, start + at_a_time)


class LayerNorm(nn.Module):
    """y = (x − mean) / sqrt(var + eps) · weight + bias, computed in at least float32 and cast back.

    Args:
        d_model: width of the last axis.
        eps: added to the variance.
        bias: add a learnt offset.
    """

    def __init__(
        self,
        d_model: int,
        eps: float = 1e-5,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(d_model, device=device, dtype=dtype)) if bias else None

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        wide = widened(x)
        bias = self.bias.to(wide.dtype) if self.bias is not None else None
        return F.layer_norm(wide, self.weight.shape, self.weight.to(wide.dtype), bias, self.eps).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, eps={self.eps}"


def make_norm(kind: str, d_model: int, eps: float = 1e-5) -> nn.Module:
    """Return the norm of a name: `rms` or `layer`.

    Args:
        kind: its name.
        d_model: width of the last axis.
        eps: added to the mean square or the variance.

    Raises:
        InputError: for another name.
    """
    kinds: dict[str, type[RMSNorm | LayerNorm]] = {"rms": RMSNorm, "layer": LayerNorm}
    one_of(kinds, norm=kind)
    return kinds[kind](d_model, eps)
