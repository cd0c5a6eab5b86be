"""Attention that behaves until it does not, each in a way of its own: a plug-in for tests."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch
from torch import Tensor, nn

from blockyard import register_attn


class Unruly(nn.Module):
    """A causal mean of what came before, for `after` training steps.

    Args:
        after: training steps before it misbehaves.
    """

    def __init__(self, d_model: int, n_heads: int, after: int = 6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(d_model))
        self.after, self.passes = after, 0

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        # What compares and measures makes a few passes of its own: training is told by its gradients.
        if self.training and torch.is_grad_enabled() and not x.is_meta:
            self.passes += 1
            if self.passes > self.after:
                return self.misbehave(x)
        return self.mean(x)

    def mean(self, x: Tensor) -> Tensor:
        return x.cumsum(1) @ self.weight * 0.01

    def misbehave(self, x: Tensor) -> Tensor:
        raise NotImplementedError


@register_attn("gives_nan")
class GivesNan(Unruly):
    def misbehave(self, x: Tensor) -> Tensor:
        return self.mean(x) * float("nan")


@register_attn("raises")
class Raises(Unruly):
    def misbehave(self, x: Tensor) -> Tensor:
        raise RuntimeError("shapes 3 and 4\ndo not go together")


@register_attn("raises_at_once")
class RaisesAtOnce(Raises):
    def __init__(self, d_model: int, n_heads: int, after: int = 0) -> None:
        super().__init__(d_model, n_heads, after)


@register_attn("kills")
class Kills(Unruly):
    """Takes its process with it, as the system does with one that asks for too much memory."""

    def misbehave(self, x: Tensor) -> Tensor:
        if self.after >= 0 and os.environ.get("UNRULY_FOLDER"):
            with Path(os.environ["UNRULY_FOLDER"], "deaths").open("a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        return self.mean(x)


@register_attn("kills_at_once")
class KillsAtOnce(Kills):
    def __init__(self, d_model: int, n_heads: int, after: int = 0) -> None:
        super().__init__(d_model, n_heads, after)


@register_attn("kills_once")
class KillsOnce(Kills):
    def misbehave(self, x: Tensor) -> Tensor:
        if Path(os.environ["UNRULY_FOLDER"], "deaths").exists():
            return self.mean(x)
        return super().misbehave(x)
