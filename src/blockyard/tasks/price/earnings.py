"""A course of gains in figures: ratios with intervals, drawdowns, months; and how well a forecast orders, over time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from blockyard.tasks.price.data.table import show_ds
from blockyard.tasks.price.evaluate import CROSS_SECTION
from blockyard.tasks.price.scores import block_length, correlation, moments, ranks, resample

# Drawdowns in the table; points of a curve of IC.
DEEPEST, POINTS = 5, 120
# Dates of a trailing IC: of one asset, whose every date is one pair, and of many, whose every date is a correlation.
ONE_ASSET, MANY_ASSETS = 250, 60
# A day's loss is never more than the capital.
MOST_LOSS = 0.999999


@dataclass(frozen=True)
class Course:
    """What was earned, date by date.

    Args:
        start: when the first weight was taken.
        ds: at whose close the step ended, rising, [D].
        gains: return of the step after costs, as a part of the capital, [D].
        changed: sum of the sizes of changes of weights, [D].
        gross: sum of the sizes of the weights held, [D].
        net: their sum, [D].
    """

    start: Any
    ds: np.ndarray
    gains: np.ndarray
    changed: np.ndarray
    gross: np.ndarray
    net: np.ndarray


def describe(course: Course, year: int, cost: float, beside: Course | None = None) -> dict[str, Any]:
    """Return annual figures, ratios, drawdowns and months of a course.

    Args:
        course: gains by date.
        year: steps of a year.
        cost: per unit of weight changed.
        beside: gains on the same dates that the Sharpe ratio is set beside.

    Returns: steps, steps_per_year, annual_return, annual_volatility, sharpe (with its interval), sharpe_minus_hold
        (likewise, paired over the same dates; with `beside`), sortino and calmar (None where nothing was lost),
        max_drawdown, turnover and costs per year, break_even (the cost per unit of weight changed at which the mean
        gain is 0; None where nothing was changed), gross and net (means), drawdowns, months, ds and curve (the
        cumulated log return by date).
    """
    gains = course.gains
    logs = np.log1p(np.maximum(gains, -MOST_LOSS))
    curve = np.cumsum(logs)
    falls = drawdowns(course, curve)
    columns = [gains, gains**2]
    if beside is not None:
        columns += [beside.gains, beside.gains**2]
    drawn = resample(np.stack(columns, axis=1), block=block_length(len(gains), 10))

    def sharpe(m: np.ndarray, first: int = 0) -> np.ndarray:
        deviation = np.sqrt(np.maximum(m[..., first + 1] - m[..., first] ** 2, 1e-18))
        found: np.ndarray = m[..., first] / deviation * np.sqrt(year)
        return found

    annual = float(np.expm1(logs.mean() * year))
    deepest = min((fall["depth"] for fall in falls), default=0.0)
    below = float(np.sqrt((np.minimum(gains, 0.0) ** 2).mean()))
    found = {
        "steps": len(gains),
        "steps_per_year": year,
        "annual_return": annual,
        "annual_volatility": float(gains.std() * np.sqrt(year)),
        "sharpe": drawn.estimate(sharpe).to_dict(),
        "sortino": float(gains.mean() / below * np.sqrt(year)) if below > 0 else None,
        "calmar": annual / -deepest if deepest < 0 else None,
        "max_drawdown": deepest,
        "turnover": float(course.changed.mean() * year),
        "costs": float(course.changed.mean() * year * cost),
        "break_even": float(gains.mean() / course.changed.mean() + cost) if course.changed.any() else None,
        "gross": float(course.gross.mean()),
        "net": float(course.net.mean()),
        "drawdowns": sorted(falls, key=lambda fall: fall["depth"])[:DEEPEST],
        "months": months(course.ds, logs),
        "ds": [str(d)[:19] for d in course.ds],
        "curve": [round(float(v), 6) for v in curve],
    }
    if beside is not None:
        found["sharpe_minus_hold"] = drawn.estimate(lambda m: sharpe(m) - sharpe(m, 2)).to_dict()
    return found


def drawdowns(course: Course, curve: np.ndarray) -> list[dict[str, Any]]:
    """Return every stretch below an earlier high, in the order of time.

    Args:
        course: its dates.
        curve: cumulated log return after each step; 0 before the first, [D].

    Returns: start (the date of the high), trough, recovery (None while below), depth (a negative part of the high),
        length (steps from the high to the recovery, or so far).
    """
    dates = [show_ds(ds) for ds in (course.start, *course.ds)]
    whole = np.concatenate([[0.0], curve])
    peak = np.maximum.accumulate(whole)
    under = whole < peak
    edges = np.flatnonzero(np.diff(np.concatenate([[False], under, [False]]).astype(np.int8)))
    found = []
    for first, after in zip(edges[::2], edges[1::2]):
        low = first + int(np.argmin(whole[first:after]))
        ended = after < len(whole)
        found.append(
            {
                "start": dates[first - 1],
                "trough": dates[low],
                "recovery": dates[after] if ended else None,
                "depth": float(np.expm1(whole[low] - peak[first])),
                "length": int(after - (first - 1)) if ended else int(len(whole) - 1 - (first - 1)),
            }
        )
    return found


def months(ds: np.ndarray, logs: np.ndarray) -> list[dict[str, Any]]:
    """Return of every calendar month that has a step, booked on its end; [] for rows without dates.

    Returns: year, month (1 to 12), return.
    """
    if ds.dtype.kind != "M":
        return []
    every, place = np.unique(ds.astype("datetime64[M]"), return_inverse=True)
    sums = np.expm1(np.bincount(place, weights=logs))
    numbers = every.astype(np.int64)
    return [
        {"year": int(1970 + number // 12), "month": int(number % 12 + 1), "return": float(value)}
        for number, value in zip(numbers, sums)
    ]


def ic_over_time(ds: np.ndarray, point: np.ndarray, y: np.ndarray) -> dict[str, Any] | None:
    """Return the correlation of forecasts with what happened, trailing: across assets date by date, or of one asset
    over time.

    Args:
        ds: date of each origin, [N].
        point: forecast, [N].
        y: what happened, [N].

    Returns: across (whether across assets), window (dates of each mean or correlation), ds, ic, rank_ic (at up to
        `POINTS` dates); None where the forecast never changes, or there are fewer than 20 dates.
    """
    order = np.argsort(ds, kind="stable")
    ds, point, y = ds[order], point[order], y[order]
    dates, starts, counts = np.unique(ds, return_index=True, return_counts=True)
    across = int(counts.max()) >= CROSS_SECTION
    if across:
        kept, pairs = [], []
        for date, a, n in zip(dates, starts, counts):
            if n >= CROSS_SECTION and np.ptp(point[a : a + n]) > 0:
                kept.append(date)
                pairs.append([_ic(point[a : a + n], y[a : a + n]), _ic(ranks(point[a : a + n]), ranks(y[a : a + n]))])
        dates, values = np.array(kept), np.array(pairs)
    if len(dates) < 20 or (not across and np.ptp(point) == 0):
        return None
    window = min(MANY_ASSETS if across else ONE_ASSET, max(len(dates) // 2, 10))
    some = np.unique(np.linspace(window - 1, len(dates) - 1, POINTS).astype(int))
    found = []
    for last in some:
        if across:
            found.append(values[last + 1 - window : last + 1].mean(axis=0))
            continue
        inside = (ds > dates[last - window] if last >= window else np.ones(len(ds), bool)) & (ds <= dates[last])
        found.append([_ic(point[inside], y[inside]), _ic(ranks(point[inside]), ranks(y[inside]))])
    return {
        "across": across,
        "window": window,
        "ds": [show_ds(dates[last]) for last in some],
        "ic": [round(float(ic), 5) for ic, _ in found],
        "rank_ic": [round(float(rank), 5) for _, rank in found],
    }


def _ic(x: np.ndarray, y: np.ndarray) -> float:
    return float(correlation(moments(x, y).mean(axis=0)))
