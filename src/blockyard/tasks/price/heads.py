"""What a forecast is: quantiles, a Student-t distribution or a point, each per horizon, and the loss that trains it.

A head turns numbers of the model ("raw", all 0 at the start) into a forecast. At raw = 0 the forecast is the
distribution of the training targets, so a model begins as "volatility times a fixed shape" and learns what differs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.nn.derivatives import outlasting
from blockyard.nn.norms import widened

HeadKind = Literal["quantile", "student_t", "point"]
# Widths change by at most this factor (in logs) per number of the model.
MOST = 4.0
LEAST_FREEDOM = 2.1


class QuantileHead(nn.Module):
    """Quantiles that cannot cross: a centre, and steps away from it that are positive by construction.

    q_τ = centre + Σ steps, step_k = base_k · exp(width + shape_k): one number per horizon widens all steps alike.

    Args:
        horizons: number of horizons.
        levels: rising, between 0 and 1.

    Shapes: raw [B, H, levels + 1] -> quantiles [B, H, levels].
    """

    def __init__(self, horizons: int, levels: Sequence[float]) -> None:
        super().__init__()
        self.levels = tuple(levels)
        # The level nearest to the median is the centre.
        self.middle = min(range(len(levels)), key=lambda k: abs(levels[k] - 0.5))
        normal = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(self.levels, dtype=torch.float64)).float()
        self.base: Tensor
        self.register_buffer("base", normal.repeat(horizons, 1))
        self.width = len(levels) + 1

    def start_at(self, y: Tensor) -> None:
        """Begin at the quantiles of targets [N, H]."""
        levels = torch.tensor(self.levels, dtype=torch.float64)
        found = torch.quantile(y.double(), levels, dim=0).T
        # Ties (a price that often stands still) must not make a step of exactly 0, which could never grow.
        least = 1e-4 * (found[:, -1:] - found[:, :1]).clamp(min=1e-6)
        steps = torch.maximum(found.diff(dim=1), least)
        centred = torch.cat([torch.zeros_like(found[:, :1]), steps.cumsum(1)], dim=1)
        found = found[:, self.middle, None] + centred - centred[:, self.middle, None]
        self.base.copy_(found.to(self.base))

    def quantiles(self, raw: Tensor) -> Tensor:
        raw = widened(raw)
        m = self.middle
        centre = self.base[:, m] + raw[..., 0]
        steps = self.base.diff(dim=1) * torch.exp(bounded(raw[..., 1:2] + raw[..., 2:]))
        up = centre[..., None] + steps[..., m:].cumsum(-1)
        down = centre[..., None] - steps[..., :m].flip(-1).cumsum(-1).flip(-1)
        return torch.cat([down, centre[..., None], up], dim=-1)

    def point(self, raw: Tensor) -> Tensor:
        return self.base[:, self.middle] + widened(raw[..., 0])

    def loss(self, quantiles: Tensor, y: Tensor) -> Tensor:
        """Return the mean pinball loss over levels and horizons."""
        return pinball(quantiles, y, self.levels)


class StudentHead(nn.Module):
    """A Student-t distribution: location, scale, degrees of freedom above 2 (a variance exists).

    Args:
        horizons: number of horizons.
        levels: which quantiles to state.

    Shapes: raw [B, H, 3] -> quantiles [B, H, levels].
    """

    width = 3

    def __init__(self, horizons: int, levels: Sequence[float]) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.base: Tensor
        # Location, log scale, and the number whose softplus is the freedom beyond the least.
        self.register_buffer("base", torch.tensor([0.0, 0.0, 3.0]).repeat(horizons, 1))

    def start_at(self, y: Tensor) -> None:
        """Begin at the median and the spread of the middle half of targets [N, H]."""
        low, middle, high = torch.quantile(y.double(), torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64), dim=0)
        # The quartiles of a t distribution with 5 degrees of freedom are at ±0.727 scales.
        scale = ((high - low) / (2 * 0.7267)).clamp(min=1e-6)
        self.base.copy_(torch.stack([middle, scale.log(), torch.full_like(scale, 3.0)], dim=1).to(self.base))

    def parameters_of(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return location, scale and degrees of freedom, [B, H] each."""
        raw = widened(raw)
        scale = torch.exp(self.base[:, 1] + bounded(raw[..., 1]))
        freedom = LEAST_FREEDOM + F.softplus(self.base[:, 2] + raw[..., 2])
        return self.base[:, 0] + raw[..., 0], scale, freedom

    def quantiles(self, raw: Tensor) -> Tensor:
        location, scale, freedom = self.parameters_of(raw)
        return location[..., None] + scale[..., None] * student_quantiles(freedom, self.levels)

    def point(self, raw: Tensor) -> Tensor:
        return self.base[:, 0] + widened(raw[..., 0])

    def nll(self, raw: Tensor, y: Tensor) -> Tensor:
        """Return the mean negative log likelihood, nats."""
        location, scale, freedom = self.parameters_of(raw)
        z = (y - location) / scale
        half = (freedom + 1) / 2
        log_norm = torch.lgamma(half) - torch.lgamma(freedom / 2) - 0.5 * torch.log(freedom * math.pi) - scale.log()
        return (half * torch.log1p(z * z / freedom) - log_norm).mean()


class PointHead(nn.Module):
    """One number per horizon.

    Args:
        horizons: number of horizons.

    Shapes: raw [B, H, 1] -> [B, H].
    """

    width = 1

    def __init__(self, horizons: int) -> None:
        super().__init__()
        self.base: Tensor
        self.register_buffer("base", torch.zeros(horizons))

    def start_at(self, y: Tensor) -> None:
        """Begin at the mean of targets [N, H]."""
        self.base.copy_(y.double().mean(dim=0).to(self.base))

    def point(self, raw: Tensor) -> Tensor:
        return self.base + widened(raw[..., 0])


def bounded(x: Tensor) -> Tensor:
    """Compute x, bent smoothly so that it stays within ±MOST."""
    return MOST * torch.tanh(x / MOST)


def pinball(quantiles: Tensor, y: Tensor, levels: Sequence[float]) -> Tensor:
    """Return the mean over everything of max(τ d, (τ − 1) d), d = y − q_τ. quantiles [..., H, Q], y [..., H]."""
    d = y[..., None] - quantiles
    tau = _on_device(tuple(levels), d.dtype, d.device)
    return torch.maximum(tau * d, (tau - 1) * d).mean()


def _on_device(levels: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return levels as a tensor, made once: at every step an accelerator would have to be waited for."""
    if torch.compiler.is_compiling():
        return torch.tensor(levels, dtype=dtype, device=device)
    return _made(levels, dtype, device)


@lru_cache(maxsize=32)
def _made(levels: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with outlasting():
        return torch.tensor(levels, dtype=dtype, device=device)


def direction_loss(point: Tensor, y: Tensor) -> Tensor:
    """Return how far forecasts are from agreeing with y in sign: softplus(−p̂ · sign(y)) weighted by |y|.

    The document compares signs, and sign() has no gradient; this is the logistic loss of the same question.
    """
    return (F.softplus(-point * torch.sign(y)) * y.abs()).mean()


def smoothness_loss(point: Tensor) -> Tensor:
    """Return the mean squared second difference over neighbouring horizons; 0 with fewer than three. point [B, H]."""
    return point.diff(n=2, dim=-1).square().mean() if point.shape[-1] > 2 else point.sum() * 0.0


def student_quantiles(freedom: Tensor, levels: Sequence[float]) -> Tensor:
    """Return quantiles of Student's t (Hill 1970, Algorithm 396).

    The relative error is below 1e-3 from 2.1 degrees of freedom on, below 1e-5 from 3 on.

    Args:
        freedom: degrees of freedom, any shape.
        levels: between 0 and 1.

    Returns: [..., levels].
    """
    n = freedom.double()[..., None]
    tau = _on_device(tuple(levels), torch.float64, freedom.device)
    # What is not chosen is kept finite, slopes and all, at arguments of its own: 0 · ∞ goes back through a `where`. The
    # median is 0, where the root below has no slope.
    median = tau == 0.5
    tau = torch.where(median, 0.25, tau)
    two_sided = 2 * torch.minimum(tau, 1 - tau)
    a = 1 / (n - 0.5)
    b = (48 / a) / a
    c = ((20700 * a / b - 98) * a - 16) * a + 96.36
    d = ((94.5 / (b + c) - 3) / b + 1) * torch.sqrt(a * math.pi / 2) * n
    y = (d * two_sided) ** (2 / n)
    # Far in the tail the first expansion holds, nearer the centre one around the normal quantile.
    x = torch.distributions.Normal(0.0, 1.0).icdf(two_sided / 2)
    z = x * x
    c = c + torch.where(n < 5, 0.3 * (n - 4.5) * (x + 0.6), torch.zeros_like(n))
    c = (((0.05 * d * x - 5) * x - 7) * x - 2) * x + b + c
    normal = (((((0.4 * z + 6.3) * z + 36) * z + 94.5) / c - z - 3) / b + 1) * x
    central = y > 0.05 + a
    normal = torch.where(central, normal, 0.0)
    y = torch.where(central, 0.05, y)
    normal = torch.expm1(a * normal * normal)
    tail = ((1 / (((n + 6) / (n * y) - 0.089 * d - 0.822) * (n + 2) * 3) + 0.5 / (n + 4)) * y - 1) * (n + 1)
    tail = tail / (n + 2) + 1 / y
    found = torch.sqrt(n * torch.where(central, normal, tail)) * torch.sign(tau - 0.5)
    return torch.where(median, 0.0, found).to(freedom.dtype)


def check_levels(levels: Sequence[float]) -> None:
    """Refuse levels that do not rise, or leave (0, 1).

    Raises:
        InputError: naming them.
    """
    rising = all(a < b for a, b in pairwise(levels))
    if not levels or not rising or not all(0 < level < 1 for level in levels):
        raise InputError(f"quantiles={list(levels)} must rise and lie between 0 and 1, both excluded")
