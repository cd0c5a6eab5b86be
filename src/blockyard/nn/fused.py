"""Thin products that read the residual stream and add to it.

Layers that are far thinner than the residual stream spend their time in passes over [rows, d_model], not in
arithmetic: a pass saved is what makes them faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockyard.nn.derivatives import HandWritten, hand_written, keep, transformed
from blockyard.nn.linear import hooked
from blockyard.nn.norms import LayerNorm, RMSNorm
from blockyard.nn.products import linear, product, suits, weight_gradient

# Fewer rows do not repay the small calls, nor do products wider than this part of what they read.
_FROM_ROWS, _UP_TO_SHARE = 64, 0.5
# Where a mean is so many deviations from 0, taking it off a product costs digits: there it is taken off before.
_FAR_MEAN = 8.0
# Numbers of the residual stream that stay in the processor's cache from one pass to the next.
_PIECE = 2**17
# From this width on one column more in a product costs more than a pass of its own.
_MEAN_APART = 64


def add_linear(x: Tensor, z: Tensor, weight: Tensor, *, owned: bool = False) -> Tensor:
    """Compute x + z Wᵀ as one product that accumulates.

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
    traced = torch.is_grad_enabled() or transformed()
    adds = suits(z.shape[0], z.shape[1], weight.shape[0], rows, z, weight)
    if owned and not traced and x.is_contiguous() and not adds:
        torch.addmm(rows, z, weight.mT, out=rows)
        return x
    thin = z.shape[-1] <= _UP_TO_SHARE * x.shape[-1] and x.device.type == "cpu" and x.dtype != torch.bfloat16
    if not adds and (not thin or rows.numel() < 2 * _PIECE):
        return torch.addmm(rows, z, weight.mT).view(x.shape)
    added = hand_written(_AddLinear, rows, z, weight) if traced else _added(rows, z, weight)
    return added.view(x.shape)


def _added(rows: Tensor, z: Tensor, weight: Tensor) -> Tensor:
    """Compute rows + z Wᵀ: in one product that reads them as it goes, or of so many rows at a time that they are still
    in the processor's cache when the product adds."""
    if suits(z.shape[0], z.shape[1], weight.shape[0], rows, z, weight):
        return product(z, weight, rows)
    out, at_a_time = torch.empty_like(rows), max(1, _PIECE // rows.shape[-1])
    for into, some, thin in zip(out.split(at_a_time), rows.split(at_a_time), z.split(at_a_time)):
        torch.addmm(some, thin, weight.mT, out=into)
    return out


class _AddLinear(HandWritten):
    """`_added` with the gradients of a product."""

    differentiable = True

    @staticmethod
    def plain(rows: Tensor, z: Tensor, weight: Tensor) -> Tensor:
        return torch.addmm(rows, z, weight.mT)

    @staticmethod
    def forward(ctx: Any, rows: Tensor, z: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(z, weight)
        return _added(rows, z, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z, weight = ctx.saved_tensors
        # The gradient of a transposed matrix is best made transposed.
        lies = weight.stride(0) < weight.stride(1)
        grad_weight = product(z.mT, grad.mT, rows=len(z)).mT if lies else weight_gradient(grad, z)
        return grad, product(grad, weight.mT), grad_weight


def norm_linear(x: Tensor, norm: nn.Module, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Compute x, and norm(x) Wᵀ without norm(x): x is multiplied, and what is thin is centred and scaled.

    Use the x returned: the gradient of whatever else reads it is then added inside the product that gives this one's.

    Args:
        x: [..., d].
        norm: a norm of its last axis.
        weight: W, [d_out, d].
    """
    if not _fuses(x, norm, weight):
        return x, linear(norm(x), weight)
    assert isinstance(norm, LayerNorm | RMSNorm)
    bias = norm.bias if isinstance(norm, LayerNorm) else None
    given = (norm.weight, bias, weight, norm.eps, isinstance(norm, LayerNorm))
    if torch.is_grad_enabled() or transformed():
        return hand_written(_NormLinear, x, *given)
    return x, _norm_linear(x.reshape(-1, x.shape[-1]), *given)[0].view(*x.shape[:-1], -1)


def _fuses(x: Tensor, norm: nn.Module, weight: Tensor) -> bool:
    if x.device.type != "cpu" or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    plain = type(norm) in (LayerNorm, RMSNorm) and not hooked(norm)
    if not plain or not x.dtype == weight.dtype == norm.weight.dtype or x.dtype not in (torch.float32, torch.float64):
        return False
    return x.numel() >= _FROM_ROWS * x.shape[-1] and weight.shape[0] <= _UP_TO_SHARE * x.shape[-1]


def _norm_linear(
    rows: Tensor, gain: Tensor, bias: Tensor | None, weight: Tensor, eps: float, centred: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    """Return returns: y [N, d_out]; the product before it was scaled [N, d_out]; what rows are multiplied with, [d_out,
    d] or, centred, with a row of 1/d below it; means [N, 1] when centred; 1 / deviation [N, 1].

    W · gain is centred instead of x: the product is the same.
    """
    d, d_out = rows.shape[-1], weight.shape[0]
    scaled = rows.new_empty(d_out + centred, d)
    scaled[d_out:] = 1 / d
    own = torch.mul(weight, gain, out=scaled[:d_out])
    square = torch.linalg.vector_norm(rows, dim=-1, keepdim=True).square_().div_(d)
    mean = None
    if centred:
        own -= own.mean(1, keepdim=True)
        if d_out < _MEAN_APART:
            raw, mean = product(rows, scaled).split([d_out, 1], dim=-1)
        else:
            raw, mean = product(rows, own), rows @ scaled[d_out:].mT
        square.addcmul_(mean, mean, value=-1.0)
        if bool((mean.square() > _FAR_MEAN**2 * square).any()):
            mean = rows.mean(-1, keepdim=True)
            apart = rows - mean
            square, raw = apart.square().mean(-1, keepdim=True), product(apart, own)
    else:
        raw = product(rows, scaled)
    inverse = square.add_(eps).rsqrt_()
    y = raw * inverse if bias is None else torch.addcmul(weight @ bias, raw, inverse)
    return y, raw, scaled, mean, inverse


class _NormLinear(HandWritten):
    """(x, norm(x) Wᵀ), whose backward makes two passes over x: one that adds, one inside a product."""

    @staticmethod
    def plain(
        x: Tensor, gain: Tensor, bias: Tensor | None, weight: Tensor, eps: float, centred: bool
    ) -> tuple[Tensor, Tensor]:
        normed = F.layer_norm(x, gain.shape, gain, bias, eps) if centred else F.rms_norm(x, gain.shape, gain, eps)
        return x, F.linear(normed, weight)

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, bias: Tensor | None, weight: Tensor, eps: float, centred: bool
    ) -> tuple[Tensor, Tensor]:
        rows = x.reshape(-1, x.shape[-1])
        y, *kept = _norm_linear(rows, gain, bias, weight, eps, centred)
        keep(ctx, (x, gain, bias, weight), (eps, centred), *kept)
        return x, y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, bias, weight, raw, scaled, mean, inverse = ctx.saved_tensors
        d, d_out = x.shape[-1], weight.shape[0]
        rows = x.reshape(-1, d)
        grads = grad_y.reshape(-1, d_out)
        # With x̂ = (x - mean) / deviation and the centred W': dx = (dy W' - x̂ mean(x̂ · dy W')) / deviation, where the
        # mean is that of a thin product, dy · (y - W b). The multiple of x's mean goes along in the product.
        into = rows.new_empty(rows.shape[0], scaled.shape[0])
        thin = torch.mul(grads, inverse, out=into[:, :d_out])
        along = (thin * raw).sum(-1, keepdim=True).mul_(inverse).mul_(inverse).div_(-d)
        if mean is not None:
            torch.mul(along, mean, out=into[:, d_out:]).mul_(-d)
        grad_rows = product(into, scaled.mT, torch.addcmul(grad_x.reshape(rows.shape), rows, along), owned=True)
        grad_scaled = product(thin.mT, rows.mT, rows=len(rows))
        if mean is not None:
            grad_scaled -= grad_scaled.mean(1, keepdim=True)
        grad_gain, grad_weight, grad_bias = (grad_scaled * weight).sum(0), grad_scaled.mul_(gain), None
        if bias is not None:
            sums = grads.sum(0)
            grad_weight.addr_(sums, bias)
            grad_bias = sums @ weight
        return grad_rows.view(grad_x.shape), grad_gain, grad_bias, grad_weight, None, None


class Stamp:
    """Tensors, and how often each has been changed in place so far.

    Looking costs a microsecond. What is changed behind autograd's back, through `.data`, goes unnoticed, and so do
    changes of inference tensors: what carries a stamp should be short-lived.

    Args:
        tensors: what something was made of.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tuple(tensors)
        # Inference tensors do not count their changes.
        self._versions = tuple(None if tensor.is_inference() else tensor._version for tensor in tensors)

    def holds(self, tensors: Sequence[Tensor]) -> bool:
        """Return whether these are the same tensors, unchanged."""
        if len(tensors) != len(self._tensors):
            return False
        for tensor, seen, version in zip(tensors, self._tensors, self._versions):
            if tensor is not seen or (version is not None and tensor._version != version):
                return False
        return True
