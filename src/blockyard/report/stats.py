"""What a handful of seeds says: means, intervals, and the differences between all choices of one comparison.

Assumptions, in one place: the figures of a choice over its seeds are independent and about normal, each choice with a
noise of its own. The same seed gives every choice the same batches; that pairing is not used, as it did not help where
it was tried (half widths of .217 with it, .194 without).

Three seeds say little about a choice's own noise, and an interval made from it alone is so wide that nothing is ever
found. So a choice lends from the others: no variance counts as less than the mean of all but the largest. What that
does to the error is not worked out but simulated, for the very numbers of choices and seeds at hand: of comparisons in
which no choice differs, at most one in twenty may claim a difference, whether all are equally noisy, one is four times
as noisy, or half of them twice. benchmarks/verdict_rules.py measures this rule beside others; docs/comparing.md has its
figures.

Needs scipy (extra `report`); without it there are means, and no intervals.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from blockyard.errors import MissingExtra, require

Word = Literal["better", "worse", "equivalent", "undecided", "unknown"]
CONFIDENCE = 0.95
# Differences within this part of the best figure do not matter, unless a task or a user says what does.
MARGIN = 0.01
# Speeds that differ by less come and go with the machine.
SPEED_MARGIN = 0.02
# Simulated comparisons behind a factor: the share of false claims is then known to a tenth of a per cent.
DRAWS = 40_000
# For advice about seeds to add, which says "about".
FEW_DRAWS = 4_000
# How noisy choices are in simulated comparisons, relative to one another: none stands out, the first does, half do.
_NOISE = ((1.0, 1.0), (4.0, 1.0), (2.0, 2.0))
# Seeds in all beyond which advice to add some is no advice.
_MOST_SEEDS = 64


def has_intervals() -> bool:
    """Return whether scipy is there, without which nothing is said about differences."""
    try:
        require("scipy.stats", extra="report")
    except MissingExtra:
        return False
    return True


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float | None, float | None]:
    """Return (mean, half width of its t-interval); the half width is None with fewer than two values, or without
    scipy."""
    if not values:
        return None, None
    mean = statistics.fmean(values)
    if len(values) < 2 or not has_intervals():
        return mean, None
    error = statistics.stdev(values) / math.sqrt(len(values))
    return mean, _t_quantile(1 - confidence, len(values) - 1) * error if error > 0 else 0.0


def margin_of(asked: float | None, natural: float | None, best: float | None) -> float:
    """Return how near figures count as equal: as asked for, else as is natural for them, else a part of the best
    figure."""
    if asked is not None:
        return asked
    return natural if natural is not None else MARGIN * abs(best or 0.0)


@dataclass(frozen=True)
class Difference:
    """Mean of one choice less the mean of another; half_width is None where there is no interval."""

    gap: float | None
    half_width: float | None

    def word(self, better: str = "lower", margin: float = 0.0) -> Word:
        """Return what may be said of the first choice beside the second.

        Args:
            better: whether the "lower" or the "higher" figure is better.
            margin: figures this near count as equal.
        """
        if self.gap is None or self.half_width is None:
            return "unknown"
        if abs(self.gap) > self.half_width:
            # Shown to differ; yet where the whole interval lies within the margin, by nothing that matters.
            if abs(self.gap) + self.half_width <= margin:
                return "equivalent"
            return "worse" if (self.gap > 0) == (better == "lower") else "better"
        return "equivalent" if abs(self.gap) + self.half_width <= margin else "undecided"


class Family:
    """The choices of one comparison, whose differences hold together: all intervals are right in 19 of 20 families.

    Args:
        samples: figures over seeds, by choice.
        confidence: that all intervals hold at once.
    """

    def __init__(self, samples: Mapping[str, Sequence[float]], confidence: float = CONFIDENCE) -> None:
        self.samples, self.alpha = dict(samples), 1 - confidence
        known = {name: values for name, values in samples.items() if len(values) >= 2}
        variances = {name: statistics.variance(values) for name, values in known.items()}
        # The largest is left out, lest one wild choice make all others look as noisy.
        rest = sorted(variances.values())[:-1]
        floor = statistics.fmean(rest) if rest else 0.0
        self.variances = {name: max(value, floor) for name, value in variances.items()}
        self.sizes = tuple(sorted(len(values) for values in known.values()))

    def difference(self, a: str, b: str) -> Difference:
        """Return the mean of a less mean of b, with the half width of its interval."""
        first, second = self.samples[a], self.samples[b]
        if not first or not second:
            return Difference(None, None)
        gap = statistics.fmean(first) - statistics.fmean(second)
        if a not in self.variances or b not in self.variances or not has_intervals():
            return Difference(gap, None)
        return Difference(gap, self._half_width(a, b, len(first), len(second), self.sizes, DRAWS))

    def seeds_to_decide(self, a: str, b: str, margin: float) -> int | None:
        """Return seeds to add to each choice until a and b are told apart, or shown to be equal within the margin.

        Means and variances are taken to stay as they are, so the answer is a guess. None when it is more than what
        makes `_MOST_SEEDS` in all.
        """
        gap = self.difference(a, b).gap
        now = max(len(self.samples[a]), len(self.samples[b]))
        if gap is None or a not in self.variances or b not in self.variances:
            return None
        for n in [*range(now + 1, now + 10), *(16, 20, 24, 32, 40, 48, _MOST_SEEDS)]:
            if now < n <= _MOST_SEEDS:
                half = self._half_width(a, b, n, n, (n,) * len(self.sizes), FEW_DRAWS)
                if abs(gap) > half or abs(gap) + half <= margin:
                    return n - now
        return None

    def _half_width(self, a: str, b: str, n_a: int, n_b: int, sizes: tuple[int, ...], draws: int) -> float:
        """Return Welch's, with floors under the variances, widened for all pairs of choices, times the simulated
        factor."""
        first, second = self.variances[a] / n_a, self.variances[b] / n_b
        if first + second == 0:
            return 0.0
        freedom = (first + second) ** 2 / (first**2 / (n_a - 1) + second**2 / (n_b - 1))
        tail = self.alpha / math.comb(len(sizes), 2)
        return simulated_factor(sizes, self.alpha, draws) * _t_quantile(tail, freedom) * math.sqrt(first + second)


def _t_quantile(tails: float, freedom: float) -> float:
    """Return the t that |T| exceeds with this probability."""
    return float(require("scipy.stats", extra="report").t.isf(tails / 2, freedom))


@cache
def simulated_factor(sizes: tuple[int, ...], alpha: float, draws: int) -> float:
    """Return what the widened intervals are multiplied with, so that a share alpha of comparisons claims what is not
    there.

    In each of `draws` comparisons without any difference the best by its mean is set beside all others, as a verdict
    does, and the distance in widened intervals is noted at which the farthest stands. The worst of the three ways to
    spread noise over the choices decides.

    Args:
        sizes: seeds of each choice, at least two choices of at least two.
        alpha: share of false claims.
        draws: number of comparisons.
    """
    np: Any = require("numpy", extra="report")
    t: Any = require("scipy.stats", extra="report").t
    random, n = np.random.default_rng(0), np.asarray(sizes, dtype=float)
    tail = alpha / math.comb(len(sizes), 2)
    # The quantile is smooth in the inverse of the degrees of freedom, of which only these occur.
    inverse = np.linspace(1 / (2 * n.max() - 2), 1 / (n.min() - 1), 64)
    quantiles = t.isf(tail / 2, 1 / inverse)
    found = []
    for first, half in _NOISE:
        noise = np.ones(len(sizes))
        noise[: len(sizes) // 2] = half
        noise[0] = first
        # Mean and variance of normal figures are independent, so they are drawn without the figures.
        means = random.standard_normal((draws, len(sizes))) * noise / np.sqrt(n)
        variances = random.chisquare(n - 1, (draws, len(sizes))) / (n - 1) * noise**2
        floor = (variances.sum(1) - variances.max(1)) / (len(sizes) - 1)
        parts = np.maximum(variances, floor[:, None]) / n
        best = means.argmin(1)[:, None]
        lead = np.take_along_axis(parts, best, 1)
        freedom = (parts + lead) ** 2 / (parts**2 / (n - 1) + lead**2 / (n[best] - 1))
        gaps = (means - np.take_along_axis(means, best, 1)) / np.sqrt(parts + lead)
        found.append(np.quantile((gaps / np.interp(1 / freedom, inverse, quantiles)).max(1), 1 - alpha))
    return float(max(found))


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return (median, low, high) of repeated measurements: the sign test's interval of at least 95 %, whatever they
    follow.

    Of fewer than six it is all that was seen, and holds the median with less.
    """
    ordered, n = sorted(values), len(values)
    # The largest k for which k - 1 or fewer of n fair coins come up heads with a chance of at most 2.5 %.
    k, chance = 0, 0.0
    while chance + math.comb(n, k) / 2**n <= 0.025:
        chance += math.comb(n, k) / 2**n
        k += 1
    low, high = (ordered[k - 1], ordered[n - k]) if k else (ordered[0], ordered[-1])
    return statistics.median(ordered), low, high


def speed_word(speedups: Sequence[float]) -> Word:
    """Return what may be said of a speed beside the reference's, from their ratios round by round; above 1 is faster.

    The words are those of `Difference.word`, with a margin of 2 %; unknown from fewer than six rounds.
    """
    if len(speedups) < 6:
        return "unknown"
    _, low, high = median_interval(speedups)
    if low >= 1 / (1 + SPEED_MARGIN) and high <= 1 + SPEED_MARGIN:
        return "equivalent"
    return "better" if low > 1 else "worse" if high < 1 else "undecided"


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Return the median and quartiles of repeated measurements, as stored in report.json."""
    if len(values) == 1:
        low = middle = high = values[0]
    else:
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "low": low, "high": high, "n": len(values)}
