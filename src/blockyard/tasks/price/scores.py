"""Scores of forecasts, as losses per origin, and intervals for means and ratios of them over any rows.

Intervals are those of the circular block bootstrap (Politis and Romano 1992). Losses of neighbouring origins are alike:
they share a market, and at horizon h even h − 1 of their steps. Blocks of neighbours are drawn instead of single rows,
so that the interval is as wide as so few independent stretches allow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

INTERVALS = (0.5, 0.8, 0.9, 0.95)


def pinball_loss(y: np.ndarray, quantiles: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    """Return the mean over levels of max(τ d, (τ − 1) d), d = y − q_τ. y [N], quantiles [N, Q] -> [N]."""
    d = y[:, None] - quantiles
    tau = np.asarray(levels)
    loss: np.ndarray = np.maximum(tau * d, (tau - 1) * d).mean(axis=1)
    return loss


def crps(y: np.ndarray, quantiles: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    """Return the continuous ranked probability score from quantiles: 2 ∫ pinball dτ by the trapezoid rule. [N].

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
    """Return whether y lies within the central interval, [N] of 0 and 1; None when its two levels are not forecast."""
    low, high = (_place(levels, level) for level in ((1 - interval) / 2, (1 + interval) / 2))
    if low is None or high is None:
        return None
    return ((y >= quantiles[:, low]) & (y <= quantiles[:, high])).astype(np.float64)


def _place(levels: Sequence[float], level: float) -> int | None:
    near = [k for k, known in enumerate(levels) if abs(known - level) < 1e-9]
    return near[0] if near else None


def hits(y: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Return 1 where the forecast has the sign of what happened, 0 where not, 1/2 where it has none. [N]."""
    return np.where(point == 0, 0.5, (np.sign(point) == np.sign(y)).astype(np.float64))


def ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks from 0, ties sharing their mean. [N]."""
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
    """Return pearson's correlation from means of x, y, x², y², xy on the last axis; 0 where one never varies."""
    mx, my, xx, yy, xy = np.moveaxis(means, -1, 0)
    scale = np.sqrt(np.maximum(xx - mx**2, 0) * np.maximum(yy - my**2, 0))
    return np.divide(xy - mx * my, scale, out=np.zeros_like(scale), where=scale > 1e-15)


def moments(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return columns of which `correlation` wants the means: [N, 5]. Both are standardised first, against
    cancellation."""
    x, y = (((v - v.mean()) / (v.std() or 1.0)) for v in (x, y))
    return np.stack([x, y, x**2, y**2, x * y], axis=1)


REPEATS = 1000
CONFIDENCE = 0.95
_EDGES = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float

    def text(self, digits: int = 3) -> str:
        """Word ".112 [.087, .136]" """
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"

    def to_dict(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


def block_length(n: int, horizon: int) -> int:
    """Return rows per block: at least twice the horizon, and the usual n^(1/3) when that is more; at most a third of
    all."""
    return max(1, min(max(2 * horizon, round(n ** (1 / 3))), n // 3))


@dataclass(frozen=True)
class Resampled:
    """Means of columns, over all rows and over each resample.

    Args:
        mean: [K].
        drawn: [repeats, K].
    """

    mean: np.ndarray
    drawn: np.ndarray

    def estimate(self, statistic: Callable[[np.ndarray], np.ndarray]) -> Estimate:
        """Return a function of the means [..., K] -> [...], with its interval."""
        value = float(statistic(self.mean))
        low, high = np.quantile(statistic(self.drawn), _EDGES)
        return Estimate(value, float(low), float(high))

    def each(self) -> list[Estimate]:
        """Return every mean with its interval."""
        low, high = np.quantile(self.drawn, _EDGES, axis=0)
        return [Estimate(*map(float, one)) for one in zip(self.mean, low, high)]


def resample(
    columns: np.ndarray, *, block: int, groups: np.ndarray | None = None, repeats: int = REPEATS, seed: int = 0
) -> Resampled:
    """Return means of columns under the circular block bootstrap; columns are drawn together, so that they stay paired.

    Args:
        columns: what is averaged, one row per origin in the order of time, [N, K].
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
    table = np.concatenate([sums, counts[:, None]], axis=1)
    n = len(table)
    block = max(1, min(block, n))
    blocks = -(-n // block)
    # Prefix sums over the series laid twice end to end make every block, wrapped or not, one subtraction.
    running = np.concatenate([np.zeros((1, table.shape[1])), np.cumsum(np.concatenate([table, table]), axis=0)])
    starts = np.random.default_rng(seed).integers(0, n, (repeats, blocks))
    drawn = (running[starts + block] - running[starts]).sum(axis=1)
    return Resampled(sums.sum(axis=0) / counts.sum(), drawn[:, :-1] / drawn[:, -1:])


def estimate(
    columns: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    *,
    block: int,
    groups: np.ndarray | None = None,
    repeats: int = REPEATS,
    seed: int = 0,
) -> Estimate:
    """Return a function of column means [..., K] -> [...], with its interval; the rest is as for `resample`."""
    return resample(columns, block=block, groups=groups, repeats=repeats, seed=seed).estimate(statistic)


Word = Literal["better", "tie", "worse", "too short"]


def enough_blocks(n: int, horizon: int) -> bool:
    """Return whether so many dates hold three blocks of twice the horizon: with fewer, intervals come out too
    narrow."""
    return n >= 6 * horizon


def word_of(difference: Mapping[str, float], enough: bool = True) -> Word:
    """Return what a paired difference (more is better) says by its interval; nothing where dates are too few for
    one."""
    if not enough:
        return "too short"
    return "better" if difference["low"] > 0 else "worse" if difference["high"] < 0 else "tie"


TENTHS = 10


def tenths(y: np.ndarray, quantiles: np.ndarray, levels: Sequence[float]) -> np.ndarray | None:
    """Return in which tenth of the forecast distribution y lies: one column of 0 and 1 for each, [N, 10].

    Its mean is the PIT histogram. Where a border (.2, .3, …) is no level that is forecast, its quantile is taken
    between (or beyond) the two nearest on a scale on which normal quantiles are straight lines: exact for a normal
    forecast, and .095 to .105 instead of .100 for a Student-t with four degrees of freedom and the nine usual levels.

    Args:
        y: what happened, [N].
        quantiles: rising, [N, Q].
        levels: of them, rising.

    Returns: None with fewer than two levels.
    """
    if len(levels) < 2:
        return None
    score = NormalDist().inv_cdf
    z = np.array([score(level) for level in levels])
    below = np.empty((len(y), TENTHS + 1), bool)
    below[:, 0], below[:, -1] = False, True
    for k in range(1, TENTHS):
        at = score(k / TENTHS)
        right = int(np.clip(np.searchsorted(z, at), 1, len(z) - 1))
        part = (at - z[right - 1]) / (z[right] - z[right - 1])
        # Exactly the forecast's own quantile where the border is a level.
        part = float(np.round(part, 12))
        border = (1 - part) * quantiles[:, right - 1] + part * quantiles[:, right]
        below[:, k] = y <= border
    # Rising quantiles make each border lie at or above the one before, so every y is in one tenth.
    return np.diff(below.astype(np.float64), axis=1)
