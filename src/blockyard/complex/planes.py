"""Complex products by three real ones instead of four (Gauss), on real and imaginary parts that are held apart.

(A + iB)(u + iv) = A(u + v) − (A + B)v + i·(A(u + v) + (B − A)u). Interleaved parts must be taken apart first, which
costs what the arithmetic saves; where several products follow one another, as in an FFN, the parts stay apart between
them. The gradients are written by hand: three products each as well, and sums that both of them share are made once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from blockyard.nn.derivatives import HandWritten, hand_written, keep
from blockyard.nn.products import product


def split_parts(pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Return interleaved reals [..., 2d] -> real and imaginary parts, [rows, d] each."""
    return hand_written(_Split, pairs.flatten(0, -2))


def join_parts(real: Tensor, imaginary: Tensor) -> Tensor:
    """Return real and imaginary parts [rows, d] -> interleaved reals [rows, 2d]."""
    return hand_written(_Join, real, imaginary)


def gauss_product(u: Tensor, v: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Compute W (u + iv), in parts.

    Args:
        u: real parts [rows, d_in].
        v: imaginary parts.
        weights: pairs [d_out, d_in, 2] each; their results stand side by side.

    Returns: real and imaginary parts [rows, sum of d_out].
    """
    return hand_written(_Product, u, v, *weights)


def _apart(pairs: Tensor) -> tuple[Tensor, Tensor]:
    # One copy in another order is faster than two of every other element, and so is making complex numbers than two
    # copies into every other element.
    real, imaginary = pairs.unflatten(-1, (-1, 2)).permute(2, 0, 1).contiguous().unbind(0)
    return real, imaginary


def _together(real: Tensor, imaginary: Tensor) -> Tensor:
    return torch.view_as_real(torch.complex(real, imaginary)).flatten(-2)


class _Split(HandWritten):
    differentiable = True
    plain = staticmethod(_apart)

    @staticmethod
    def forward(ctx: Any, pairs: Tensor) -> tuple[Tensor, Tensor]:
        return _apart(pairs)

    @staticmethod
    def backward(ctx: Any, real: Tensor, imaginary: Tensor) -> Tensor:
        return _together(real, imaginary)


class _Join(HandWritten):
    differentiable = True
    plain = staticmethod(_together)

    @staticmethod
    def forward(ctx: Any, real: Tensor, imaginary: Tensor) -> Tensor:
        return _together(real, imaginary)

    @staticmethod
    def backward(ctx: Any, pairs: Tensor) -> tuple[Tensor, Tensor]:
        return _apart(pairs)


class _Product(HandWritten):
    @staticmethod
    def plain(u: Tensor, v: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        real, imaginary = torch.cat(weights).unbind(-1)
        return u @ real.mT - v @ imaginary.mT, u @ imaginary.mT + v @ real.mT

    @staticmethod
    def forward(ctx: Any, u: Tensor, v: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        a, total, difference = _forms(weights)
        keep(ctx, (u, v, *weights), (), a, total, difference)
        # In both parts: the product that is saved.
        both = product(u + v, a)
        return product(v, total, both), product(u, difference, both, owned=True)

    @staticmethod
    def backward(ctx: Any, p: Tensor, q: Tensor) -> tuple[Tensor | None, ...]:
        u, v, *weights, a, total, difference = ctx.saved_tensors
        both = p + q
        grad_u = grad_v = None
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            # Gradients in real pairs: of x it is Wᴴ g, …
            shared = product(both, a.mT)
            grad_u, grad_v = product(q, difference.mT, shared), product(p, total.mT, shared, owned=True)
        if not any(ctx.needs_input_grad[2:]):
            return grad_u, grad_v, *(None for _ in weights)
        # … of W it is g xᴴ.
        real, imaginary = _outer(both, p, q, u, v)
        return grad_u, grad_v, *torch.view_as_real(torch.complex(real, imaginary)).split([len(w) for w in weights])


def _outer(both: Tensor, p: Tensor, q: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Compute both parts of (p + iq)ᵀ (u − iv), [d_out, d_in], from p + q and the four of them."""
    n, less, more = len(u), v - u, (u + v).neg_()
    if u.shape[1] < p.shape[1]:
        # Left factors are brought into rows: the narrow ones, whose transposed result is small.
        shared = product(u.mT, both.mT, rows=n)
        found = product(less.mT, q.mT, shared, rows=n), product(more.mT, p.mT, shared, owned=True, rows=n)
        return found[0].mT.contiguous(), found[1].mT.contiguous()
    shared = product(both.mT, u.mT, rows=n)
    return product(q.mT, less.mT, shared, rows=n), product(p.mT, more.mT, shared, owned=True, rows=n)


def _forms(weights: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Compute A, −A − B and B − A of the stacked weights."""
    parts = torch.empty(2, sum(len(weight) for weight in weights), weights[0].shape[1], dtype=weights[0].dtype)
    start = 0
    for weight in weights:
        parts[:, start : start + len(weight)] = weight.permute(2, 0, 1)
        start += len(weight)
    real, imaginary = parts.unbind(0)
    return real, -(real + imaginary), imaginary - real
