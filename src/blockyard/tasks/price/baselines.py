"""Forecasts that need no net: what every figure of a model stands beside.

All are fitted on the past alone: parameters and the shape of the distribution come from the rows up to a border, and
the forecast of row t uses the rows up to t.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from blockyard.errors import InputError, MissingExtra, require, suggest
from blockyard.tasks.price.automatic import MOST_ORIGINS, auto_arima, auto_ets
from blockyard.tasks.price.data.features import TARGET_WINDOW, volatility
from blockyard.tasks.price.data.windows import PriceTables
from blockyard.tasks.price.past import Past, Result, shaped
from blockyard.tasks.price.variance import ewma, garch, gjr_garch, har, historical

RIDGE_STRENGTHS = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6)


@dataclass(frozen=True)
class Forecast:
    """Log returns over each horizon, for every origin.

    Args:
        name: who forecasts.
        point: [N, H].
        quantiles: [N, H, levels], or None for a forecast of direction or level alone.
    """

    name: str
    point: np.ndarray
    quantiles: np.ndarray | None


def unconditional(past: Past) -> Result:
    """Return the distribution of past returns, the same every day: what skill is measured against."""
    ones = np.ones_like(past.known)
    _, quantiles = shaped(past, ones)
    return np.broadcast_to(np.nanmean(past.known, axis=0), ones.shape).copy(), quantiles


def random_walk(past: Past) -> Result:
    """Return the last price, with the past's spread around it and no drift."""
    known = past.known
    ones = np.ones_like(known)
    level = np.nanmean(known, axis=0)
    _, quantiles = shaped(past, ones, level)
    return np.zeros_like(known), quantiles - level[:, None]


def drift(past: Past) -> Result:
    """Return the last price plus the mean past return per step times h."""
    mean = past.returns[1 : past.end].mean()
    centre = np.broadcast_to(mean * np.asarray(past.horizons, np.float64), past.known.shape)
    return shaped(past, np.ones_like(past.known), centre)


def always_up(past: Past) -> Result:
    """Forecast up by the mean size of a past move: a direction to beat, with the past's distribution."""
    _, quantiles = unconditional(past)
    size = np.nanmean(np.abs(past.known), axis=0)
    return np.broadcast_to(size, past.known.shape).copy(), quantiles


def ridge(past: Past) -> Result:
    """Return linear in the same features as the model's, towards return ÷ (σ20 √h); strength chosen on the last
    fifth."""
    unit = past.sigma[:, None] * np.sqrt(np.asarray(past.horizons, np.float64))
    y = past.known / unit
    rows = np.flatnonzero(np.isfinite(past.features).all(axis=1) & np.isfinite(y).all(axis=1))
    if len(rows) < 50:
        raise InputError(f"ridge has {len(rows)} complete rows before the border; 50 are needed")
    cut, reach = int(len(rows) * 0.8), max(past.horizons)
    errors = [
        np.mean((y[rows[cut + reach :]] - _ridge(past.features, y, rows[:cut], k)[rows[cut + reach :]]) ** 2)
        for k in RIDGE_STRENGTHS
    ]
    centre = np.nan_to_num(_ridge(past.features, y, rows, RIDGE_STRENGTHS[int(np.argmin(errors))])) * unit
    return shaped(past, unit, centre)


def _ridge(x: np.ndarray, y: np.ndarray, rows: np.ndarray, strength: float) -> np.ndarray:
    """Return predictions for all rows of a ridge fitted on some."""
    mean, std = x[rows].mean(axis=0), x[rows].std(axis=0)
    z = (x - mean) / np.where(std > 1e-9, std, 1.0)
    level = y[rows].mean(axis=0)
    a = z[rows]
    weights = np.linalg.solve(a.T @ a + strength * np.eye(a.shape[1]), a.T @ (y[rows] - level))
    found: np.ndarray = z @ weights + level
    return found


BASELINES: dict[str, Callable[[Past], Result]] = {
    "unconditional": unconditional,
    "random walk": random_walk,
    "drift": drift,
    "always up": always_up,
    "ridge": ridge,
    "HistVol20": historical,
    "EWMA(0.94)": ewma,
    "HAR": har,
    "GARCH-t": garch,
    "GJR-GARCH-t": gjr_garch,
    "AutoARIMA": auto_arima,
    "AutoETS": auto_ets,
}
REFERENCE, WALK = "unconditional", "random walk"
# What a forecast of volatility has to beat: skill is told as the difference to theirs, too. The last knows that falls
# raise volatility more than rises do, which is most of what a net adds to the other two on an index of shares.
RIVALS = ("EWMA(0.94)", "GARCH-t", "GJR-GARCH-t")
# Run by themselves only where statsforecast is installed.
AUTOMATIC = ("AutoARIMA", "AutoETS")


def run_baselines(
    data: PriceTables,
    levels: Sequence[float],
    *,
    assets: np.ndarray,
    rows: np.ndarray,
    fit_until: object,
    names: Sequence[str] | None = None,
) -> tuple[dict[str, Forecast], list[str]]:
    """Fit the baselines up to a date and forecast from the given origins.

    Args:
        data: the assets.
        levels: of the quantiles.
        assets: asset number of each origin, rising.
        rows: row of each origin.
        fit_until: last date that may be fitted on.
        names: which; None = all, those of statsforecast where it is installed and origins are not too many.

    Returns: forecasts by name, and why any is missing.

    Raises:
        InputError: for an unknown name, or too few rows before the date.
    """
    notes: list[str] = []
    wanted: Mapping[str, Callable[[Past], Result]] = BASELINES
    if names is not None:
        for name in names:
            if name not in BASELINES:
                raise InputError(f"no baseline {name!r}{suggest(name, BASELINES)}; there are: {', '.join(BASELINES)}")
        wanted = {name: BASELINES[name] for name in names}
    elif (why := _no_automatic(len(rows))) is not None:
        wanted = {name: baseline for name, baseline in BASELINES.items() if name not in AUTOMATIC}
        notes += why
    found = {}
    for name, baseline in wanted.items():
        try:
            parts = [baseline(_past(data, a, fit_until, levels, rows[assets == a])) for a in range(len(data.tables))]
        except MissingExtra as error:
            notes.append(f"{name} is left out: {error}")
            continue
        point = np.concatenate([parts[a][0][rows[assets == a]] for a in range(len(parts))])
        quantiles = np.concatenate([parts[a][1][rows[assets == a]] for a in range(len(parts))])
        found[name] = Forecast(name, point, quantiles)
    return found, notes


def _no_automatic(origins: int) -> list[str] | None:
    """Return why those of statsforecast are left out: [] without a word where it is not installed, None if they run."""
    try:
        require("statsforecast", extra="baselines")
    except MissingExtra:
        return []
    if origins > MOST_ORIGINS:
        return [f"{' and '.join(AUTOMATIC)} are left out: they filter {origins:,} origins one by one"]
    return None


def _past(data: PriceTables, number: int, fit_until: object, levels: Sequence[float], wanted: np.ndarray) -> Past:
    table = data.tables[number]
    # mypy: numpy types no dates here.
    end = int(np.searchsorted(table.ds, fit_until, "right"))  # type: ignore[call-overload]
    returns = np.diff(table.log_close, prepend=table.log_close[0])
    # As the baselines know it: of all returns, nights among them.
    sigma = volatility(returns, TARGET_WINDOW)
    return Past(table.log_close, returns, table.values, sigma, end, data.horizons, tuple(levels), wanted)
