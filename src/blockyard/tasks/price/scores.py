"""Scores of forecasts, as losses per origin, and intervals for means and ratios of them over any rows.

Intervals are those of the circular block bootstrap (Politis and Romano 1992). Losses of neighbouring origins are alike:
they share a market, and at horizon h even h − 1 of their steps. Blocks of neighbours are drawn instead of single rows,
so that the interval is as wide as so few independent stretches allow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

INTERVALS = (0.5, 0.8, 0.9, 0.95)


def pinball_loss(y: np.ndarray, quantiles: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    """Mean over levels of max(τ d, (τ − 1) d), d = y − q_τ. y [N], quantiles [N, Q] -> [N]."""
    d = y[:, None] - quantiles
    tau = np.asarray(levels)
    loss: np.ndarray = np.maximum(tau * d, (tau - 1) * d).mean(axis=1)
    return loss


def crps(y: np.ndarray, quantiles: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    """Continuous ranked probability score from quantiles: 2 ∫ pinball dτ by the trapezoid rule. [N].

    Beyond the outermost levels the pinball loss is taken to fall to 0 in a straight line. With the usual nine levels
    the result is up to a seventh too small where an outcome is near the median; ratios suffer less.
    """
    d = y[:, None] - quantiles
    tau = np.asarray(levels)
    loss = np.maximum(tau * d, (tau - 1) * d)
    zeros = np.zeros((len(y), 1))
    whole = np.concatenate([zeros, loss, zeros], axis=1)
    found: np.ndarray = 2 * np.trapezoid(whole, np.concatenate([[0.0], tau, [1.0]]), axis=1)
    return found


def covered(y: np.ndarray, quantiles: np.ndarray, levels: Sequence[float], interval: float) -> np.ndarray | None:
    """Whether y lies within the central interval, [N] of 0 and 1; None when its two levels are not forecast."""
    low, high = (_place(levels, level) for level in ((1 - interval) / 2, (1 + interval) / 2))
    if low is None or high is None:
        return None
    return ((y >= quantiles[:, low]) & (y <= quantiles[:, high])).astype(np.float64)


def _place(levels: Sequence[float], level: float) -> int | None:
    near = [k for k, known in enumerate(levels) if abs(known - level) < 1e-9]
    return near[0] if near else None


def hits(y: np.ndarray, point: np.ndarray) -> np.ndarray:
    """1 where the forecast has the sign of what happened, 0 where not, 1/2 where it has none. [N]."""
    return np.where(point == 0, 0.5, (np.sign(point) == np.sign(y)).astype(np.float64))


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, ties sharing their mean. [N]."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    group = np.cumsum(first) - 1
    starts = np.flatnonzero(first)
    counts = np.diff(np.append(starts, len(values)))
    found = np.empty(len(values))
    found[order] = (starts + (counts - 1) / 2)[group]
    return found


def correlation(means: np.ndarray) -> np.ndarray:
    """Pearson's correlation from means of x, y, x², y², xy on the last axis; 0 where one never varies."""
    mx, my, xx, yy, xy = np.moveaxis(means, -1, 0)
    spread = np.sqrt(np.maximum(xx - mx**2, 0) * np.maximum(yy - my**2, 0))
    return np.divide(xy - mx * my, spread, out=np.zeros_like(spread), where=spread > 1e-15)


def moments(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Columns of which `correlation` wants the means: [N, 5]. Both are standardised first, against cancellation."""
    x, y = (((v - v.mean()) / (v.std() or 1.0)) for v in (x, y))
    return np.stack([x, y, x**2, y**2, x * y], axis=1)


REPEATS = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float

    def text(self, digits: int = 3) -> str:
        """ ".112 [.087, .136]" """
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"

    def to_dict(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


def block_length(n: int, horizon: int) -> int:
    """Rows per block: at least twice the horizon, and the usual n^(1/3) when that is more; at most a third of all."""
    return max(1, min(max(2 * horizon, round(n ** (1 / 3))), n // 3))


def estimate(
    columns: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    *,
    block: int,
    groups: np.ndarray | None = None,
    repeats: int = REPEATS,
    seed: int = 0,
) -> Estimate:
    """A function of column means, with its interval.

    Args:
        columns: what is averaged, one row per origin in the order of time, [N, K].
        statistic: means [..., K] -> figure [...].
        block: rows (or groups) per block.
        groups: number of each row's group (its date, with several assets), not falling; groups are drawn whole.
        repeats: resamples.
        seed: of the draws.
    """
    sums, counts = columns.astype(np.float64), np.ones(len(columns))
    if groups is not None:
        _, place = np.unique(groups, return_inverse=True)
        counts = np.bincount(place).astype(np.float64)
        sums = np.stack([np.bincount(place, weights=column) for column in columns.T], axis=1)
    value = float(statistic(sums.sum(axis=0) / counts.sum()))
    table = np.concatenate([sums, counts[:, None]], axis=1)
    n = len(table)
    block = max(1, min(block, n))
    blocks = -(-n // block)
    # Prefix sums over the series laid twice end to end make every block, wrapped or not, one subtraction.
    running = np.concatenate([np.zeros((1, table.shape[1])), np.cumsum(np.concatenate([table, table]), axis=0)])
    starts = np.random.default_rng(seed).integers(0, n, (repeats, blocks))
    drawn = (running[starts + block] - running[starts]).sum(axis=1)
    found = statistic(drawn[:, :-1] / drawn[:, -1:])
    edge = (1 - CONFIDENCE) / 2
    low, high = np.quantile(found, [edge, 1 - edge])
    return Estimate(value, float(low), float(high))
