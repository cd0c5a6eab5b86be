"""Intervals for figures of overlapping forecasts: the circular block bootstrap (Politis and Romano 1992).

Losses of neighbouring origins are alike: they share a market, and at horizon h even h − 1 of their steps. Blocks of
neighbours are drawn instead of single rows, so that the interval is as wide as so few independent stretches allow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

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
