"""Means, t-intervals and differences over a handful of seeds; no dependency beyond the standard library."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def t_quantile(confidence: float, df: float) -> float:
    """The t for which P(|T| < t) = confidence, by substituting t = sqrt(df) tan(angle).

    The density of the angle is cos(angle)^(df - 1), smooth and bounded for df >= 1, so Simpson's rule and a bisection
    give eight digits without special functions.

    Args:
        confidence: between 0 and 1, for example 0.95.
        df: degrees of freedom, at least 1, not necessarily whole.
    """
    total = _angle_mass(math.pi / 2, df)
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        if _angle_mass(middle, df) < confidence * total:
            low = middle
        else:
            high = middle
    return math.sqrt(df) * math.tan((low + high) / 2)


def _angle_mass(angle: float, df: float) -> float:
    # Beyond a few standard deviations the integrand vanishes: a fixed fine grid serves every df met here.
    n = 2000
    h = angle / n
    inner = sum((4 if i % 2 else 2) * math.cos(i * h) ** (df - 1) for i in range(1, n))
    return h / 3 * (1.0 + inner + max(0.0, math.cos(angle)) ** (df - 1))


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float | None, float | None]:
    """(mean, half width of its t-interval); the half width is None with fewer than two values."""
    if not values:
        return None, None
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    error = statistics.stdev(values) / math.sqrt(len(values))
    return mean, (t_quantile(confidence, len(values) - 1) * error if error > 0 else 0.0)


def difference(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> tuple[float | None, float | None]:
    """(mean(a) - mean(b), half width of Welch's interval); the half width is None unless both have two values.

    Welch, not paired: the same seed gives every choice the same batches, which can only make the two samples agree
    more, so the unpaired interval errs on the side of claiming too little, and it keeps twice the degrees of freedom.
    """
    if not a or not b:
        return None, None
    gap = statistics.fmean(a) - statistics.fmean(b)
    if len(a) < 2 or len(b) < 2:
        return gap, None
    va, vb = statistics.variance(a) / len(a), statistics.variance(b) / len(b)
    if va + vb == 0:
        return gap, 0.0
    df = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    return gap, t_quantile(confidence, max(1.0, df)) * math.sqrt(va + vb)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of repeated measurements, as stored in report.json."""
    if len(values) == 1:
        low = middle = high = values[0]
    else:
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "low": low, "high": high, "n": len(values)}
