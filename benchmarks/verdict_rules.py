"""How often rules of comparison claim a difference that is not there, and find one that is.

    python benchmarks/verdict_rules.py [--reports 20000] [--out FILE.json]

A report has k choices of n seeds, normal figures, and sets the choice with the best mean beside all others. *False* is
the share of reports that call any choice worse although none is; *power* the share that call one choice worse which
stands two (three) standard deviations of the ordinary noise behind. Three spreads of noise: equal, one choice four
times as noisy, half of them twice. The rule of reports (`blockyard.report.stats.Family`) is `family`; the others are
those of textbooks, some with a quantile found by the same simulation ("simulated").
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from blockyard.report.stats import DRAWS, simulated_factor

NOISE: dict[str, Callable[[int], np.ndarray]] = {
    "equal": lambda k: np.ones(k),
    "one 4x": lambda k: np.r_[4.0, np.ones(k - 1)],
    "half 2x": lambda k: np.r_[np.full(k // 2, 2.0), np.ones(k - k // 2)],
}
SHAPES = ((3, 3), (6, 3), (3, 5), (6, 5), (2, 3))
ALPHA = 0.05
# A rule takes means and variances [reports, k] and n, and says who is worse than the best, [reports, k].
Rule = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


def beside_the_best(means: np.ndarray, variances: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distances from the best in standard errors, and both variances of each pair."""
    best = means.argmin(1)[:, None]
    lead = np.take_along_axis(variances, best, 1)
    gaps = means - np.take_along_axis(means, best, 1)
    with np.errstate(invalid="ignore"):
        return gaps / np.sqrt((variances + lead) / n), variances, lead


def freedom(mine: np.ndarray, lead: np.ndarray, n: int) -> np.ndarray:
    """Welch's degrees of freedom of each pair."""
    return (n - 1) * (mine + lead) ** 2 / (mine**2 + lead**2)


def welch(pairs: str, *, sidak: bool = False) -> Rule:
    """Welch's intervals, each pair with its own noise, widened for the leader's pairs or for all."""

    def rule(means: np.ndarray, variances: np.ndarray, n: int) -> np.ndarray:
        k = means.shape[1]
        many = k - 1 if pairs == "leader" else math.comb(k, 2)
        tail = 1 - (1 - ALPHA) ** (1 / many) if sidak else ALPHA / many
        t, mine, lead = beside_the_best(means, variances, n)
        return t > stats.t.isf(tail / 2, freedom(mine, lead, n))

    return rule


def tukey(means: np.ndarray, variances: np.ndarray, n: int) -> np.ndarray:
    """Tukey's honest difference: one noise for all."""
    k = means.shape[1]
    t = beside_the_best(means, np.broadcast_to(variances.mean(1, keepdims=True), variances.shape), n)[0]
    return t > stats.studentized_range.isf(ALPHA, k, k * (n - 1)) / math.sqrt(2)


def games_howell(means: np.ndarray, variances: np.ndarray, n: int) -> np.ndarray:
    """Tukey's range for pairs with Welch's freedom."""
    k = means.shape[1]
    t, mine, lead = beside_the_best(means, variances, n)
    # The quantile is slow to compute and smooth in 1/df.
    inverse = np.linspace(1 / (2 * n - 2), 1 / (n - 1), 24)
    quantiles = stats.studentized_range.isf(ALPHA, k, 1 / inverse)
    return t > np.interp(1 / freedom(mine, lead, n), inverse, quantiles) / math.sqrt(2)


def moderated(prior: float) -> Callable[[np.ndarray, int], np.ndarray]:
    """Variances shrunk towards the pooled one, which counts as `prior` degrees of freedom."""
    return lambda v, n: (prior * v.mean(1, keepdims=True) + (n - 1) * v) / (prior + n - 1)


def floored(v: np.ndarray, n: int) -> np.ndarray:
    """No variance below the mean of all but the largest."""
    return np.maximum(v, ((v.sum(1) - v.max(1)) / max(1, v.shape[1] - 1))[:, None])


def simulated(change: Callable[[np.ndarray, int], np.ndarray], *, welch: bool = False) -> Rule:
    """One quantile for all pairs, the largest that the three spreads of noise ask for."""
    known: dict[tuple[int, int], float] = {}

    def distances(means: np.ndarray, variances: np.ndarray, n: int) -> np.ndarray:
        t, mine, lead = beside_the_best(means, change(variances, n), n)
        if welch:
            t = t / stats.t.isf(ALPHA / math.comb(means.shape[1], 2) / 2, freedom(mine, lead, n))
        return t

    def rule(means: np.ndarray, variances: np.ndarray, n: int) -> np.ndarray:
        k = means.shape[1]
        if (k, n) not in known:
            random = np.random.default_rng(17)
            found = [distances(*draw(random, k, n, of(k), DRAWS), n).max(1) for of in NOISE.values()]
            known[(k, n)] = float(max(np.quantile(f, 1 - ALPHA) for f in found))
        return distances(means, variances, n) > known[(k, n)]

    return rule


def family(means: np.ndarray, variances: np.ndarray, n: int) -> np.ndarray:
    """The rule of reports."""
    k = means.shape[1]
    t, mine, lead = beside_the_best(means, floored(variances, n), n)
    quantile = stats.t.isf(ALPHA / math.comb(k, 2) / 2, freedom(mine, lead, n))
    return t > simulated_factor((n,) * k, ALPHA, DRAWS) * quantile


RULES: dict[str, Rule] = {
    "Welch, Bonferroni over the leader's pairs (before)": welch("leader"),
    "Welch, Bonferroni over all pairs": welch("all"),
    "Welch, Sidak over all pairs": welch("all", sidak=True),
    "pooled (Tukey)": tukey,
    "Games-Howell": games_howell,
    "pooled, simulated": simulated(lambda v, n: np.broadcast_to(v.mean(1, keepdims=True), v.shape)),
    "own variances, simulated": simulated(lambda v, n: v),
    "moderated by 4, simulated": simulated(moderated(4.0)),
    "floor at the pooled, simulated": simulated(lambda v, n: np.maximum(v, v.mean(1, keepdims=True))),
    "floor without the largest, simulated": simulated(floored),
    "family: the same with Welch's freedom": family,
}


def draw(random: np.random.Generator, k: int, n: int, noise: np.ndarray, many: int) -> tuple[np.ndarray, np.ndarray]:
    """Means and variances of figures over seeds, [many, k]."""
    figures = random.standard_normal((many, k, n)) * noise[:, None]
    return figures.mean(2), figures.var(2, ddof=1)


def measure(rule: Rule, k: int, n: int, reports: int) -> dict[str, Any]:
    """False claims and power of a rule in one shape of report."""
    random, found = np.random.default_rng(3), {"false": {}, "power": {}}
    for name, of in NOISE.items():
        means, variances = draw(random, k, n, of(k), reports)
        found["false"][name] = float(rule(means, variances, n).any(1).mean())
        # The last choice has ordinary noise in every spread.
        for behind in (2.0, 3.0):
            shifted = means.copy()
            shifted[:, -1] += behind
            found["power"][f"{name}, {behind:g} sd"] = float(rule(shifted, variances, n)[:, -1].mean())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reports", type=int, default=20_000)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    for k, n in SHAPES:
        print(
            f"{k} choices, {n} seeds",
            " " * 26,
            *(f"{name:>7}" for name in NOISE),
            "  power at 2 (3) sd, the same order",
        )
        for name, rule in RULES.items():
            found = measure(rule, k, n, arguments.reports)
            rows.append({"rule": name, "choices": k, "seeds": n, "reports": arguments.reports, **found})
            power = list(found["power"].values())
            pairs = "  ".join(f"{100 * a:3.0f} ({100 * b:3.0f})" for a, b in zip(power[::2], power[1::2]))
            false = " ".join(f"{100 * share:6.1f}%" for share in found["false"].values())
            mark = "" if max(found["false"].values()) <= 0.055 else " above 5.5 %"
            print(f"  {name:48s} {false}   {pairs}{mark}", flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps({"alpha": ALPHA, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
