"""Squared ReLU, forward and backward, in as few passes over memory as eager mode allows.

The hidden layer of an FFN is the widest thing that a model computes (Primer, arXiv 2109.08668). Autograd makes three
new tensors of it in each direction; here one is made and written over, and h alone is kept.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from blockyard.nn.derivatives import HandWritten, hand_written, needs_plain


def squared_relu(h: Tensor) -> Tensor:
    """Compute max(h, 0)², of any shape."""
    if h.device.type != "cpu" or torch.compiler.is_compiling() or not (torch.is_grad_enabled() and h.requires_grad):
        # Compilers fuse the definition, and so does an accelerator's kernel in good part.
        return _defined(h)
    squared: Tensor = hand_written(_SquaredReLU, h)
    return squared


def _defined(h: Tensor) -> Tensor:
    return F.relu(h).square()


class _SquaredReLU(HandWritten):
    """max(h, 0)², which keeps h alone for its slope 2 max(h, 0)."""

    differentiable = True
    plain = staticmethod(_defined)

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        ctx.save_for_backward(h)
        out = F.relu(h)
        return out.square_()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (h,) = ctx.saved_tensors
        if needs_plain():
            # What is written in place has no derivative.
            return grad * (2 * F.relu(h))
        out = F.relu(h)
        return out.mul_(grad).mul_(2)
