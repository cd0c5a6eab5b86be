"""Thin products that read the residual stream and add to it.

Layers that are far thinner than the residual stream spend their time in passes over [rows, d_model], not in
arithmetic: a pass saved is what makes them faster.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from blockyard.layers.linear import hooked
from blockyard.layers.norms import LayerNorm, RMSNorm

# Fewer rows do not repay the small calls, nor do products wider than this part of what they read.
_FROM_ROWS, _UP_TO_SHARE = 64, 0.5
# Where a mean is so many deviations from 0, taking it off a product costs digits: there it is taken off before.
_FAR_MEAN = 8.0


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


def norm_linear(x: Tensor, norm: nn.Module, weight: Tensor) -> tuple[Tensor, Tensor]:
    """x, and norm(x) Wᵀ without norm(x): x is multiplied, and what is thin is centred and scaled.

    Use the x returned: the gradient of whatever else reads it is then added inside the product that gives this one's.

    Args:
        x: [..., d].
        norm: a norm of its last axis.
        weight: W, [d_out, d].
    """
    if not _fuses(x, norm, weight):
        return x, F.linear(norm(x), weight)
    assert isinstance(norm, LayerNorm | RMSNorm)
    bias = norm.bias if isinstance(norm, LayerNorm) else None
    given = (norm.weight, bias, weight, norm.eps, isinstance(norm, LayerNorm))
    if torch.is_grad_enabled():
        return _NormLinear.apply(x, *given)
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
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Returns: y [N, d_out]; what rows are multiplied with, [d_out, d] or, centred, with a row of 1/d below it;
    means [N, 1] when centred; 1 / deviation [N, 1].

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
        product = rows @ scaled.mT
        y, mean = product[:, :d_out], product[:, d_out:]
        square.addcmul_(mean, mean, value=-1.0)
        if bool((mean.square() > _FAR_MEAN**2 * square).any()):
            mean = rows.mean(-1, keepdim=True)
            apart = rows - mean
            square, y = apart.square().mean(-1, keepdim=True), apart @ own.mT
    else:
        y = rows @ scaled.mT
    inverse = square.add_(eps).rsqrt_()
    return (y * inverse if bias is None else torch.addcmul(weight @ bias, y, inverse)), scaled, mean, inverse


class _NormLinear(torch.autograd.Function):
    """(x, norm(x) Wᵀ), whose backward makes two passes over x: one that adds, one inside a product."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, bias: Tensor | None, weight: Tensor, eps: float, centred: bool
    ) -> tuple[Tensor, Tensor]:
        rows = x.reshape(-1, x.shape[-1])
        y, scaled, mean, inverse = _norm_linear(rows, gain, bias, weight, eps, centred)
        ctx.save_for_backward(rows, gain, bias, weight, y, scaled, mean, inverse)
        return x, y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_x: Tensor, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        rows, gain, bias, weight, y, scaled, mean, inverse = ctx.saved_tensors
        d, d_out = rows.shape[-1], weight.shape[0]
        grads = grad_y.reshape(-1, d_out)
        # With x̂ = (x - mean) / deviation and the centred W': dx = (dy W' - x̂ mean(x̂ · dy W')) / deviation, where the
        # mean is that of a thin product, y · dy. The multiple of the mean itself goes along in the product.
        into = rows.new_empty(rows.shape[0], scaled.shape[0])
        thin = torch.mul(grads, inverse, out=into[:, :d_out])
        along = (thin * y).sum(-1, keepdim=True)
        if bias is not None:
            along -= thin @ (weight @ bias).unsqueeze(-1)
        along.mul_(inverse).div_(-d)
        if mean is not None:
            torch.mul(along, mean, out=into[:, d_out:]).mul_(-d)
        grad_rows = (into @ scaled).addcmul_(rows, along).add_(grad_x.reshape(rows.shape))
        grad_scaled = thin.mT @ rows
        if mean is not None:
            grad_scaled -= grad_scaled.mean(1, keepdim=True)
        grad_gain, grad_weight, grad_bias = (grad_scaled * weight).sum(0), grad_scaled.mul_(gain), None
        if bias is not None:
            sums = grads.sum(0)
            grad_weight.addr_(sums, bias)
            grad_bias = sums @ weight
        return grad_rows.view(grad_x.shape), grad_gain, grad_bias, grad_weight, None, None
