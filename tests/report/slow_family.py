"""The slow twin of `Family`'s factor: every figure is drawn, and every quantity worked out by its definition."""

from __future__ import annotations

import math
import statistics

import numpy as np
from scipy import stats


def slow_factor(sizes: tuple[int, ...], draws: int, alpha: float = 0.05) -> float:
    """The largest of three quantiles of how far, in Welch's widened intervals, the farthest stands from the best."""
    random, sizes = np.random.default_rng(11), tuple(sorted(sizes))
    k = len(sizes)
    patterns = [[1.0] * k, [4.0] + [1.0] * (k - 1), [2.0] * (k // 2) + [1.0] * (k - k // 2)]
    found = []
    for noise in patterns:
        farthest = []
        for _ in range(draws):
            figures = [random.standard_normal(n) * s for n, s in zip(sizes, noise)]
            variances = [statistics.variance(list(f)) for f in figures]
            floor = statistics.fmean(sorted(variances)[:-1])
            errors = [max(v, floor) / n for v, n in zip(variances, sizes)]
            means = [f.mean() for f in figures]
            best = min(range(k), key=lambda i: means[i])
            ratios = []
            for i in range(k):
                if i == best:
                    continue
                a, b = errors[i], errors[best]
                freedom = (a + b) ** 2 / (a**2 / (sizes[i] - 1) + b**2 / (sizes[best] - 1))
                welch = stats.t.isf(alpha / math.comb(k, 2) / 2, freedom) * math.sqrt(a + b)
                ratios.append((means[i] - means[best]) / welch)
            farthest.append(max(ratios))
        found.append(float(np.quantile(farthest, 1 - alpha)))
    return max(found)
