"""Forecasts that need no net: what every figure of a model stands beside.

All are fitted on the past alone: parameters and the shape of the distribution come from the rows up to a border, and
the forecast of row t uses the rows up to t.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from blockyard.errors import InputError, MissingExtra, require, suggest
from blockyard.tasks.price.data.features import TARGET_WINDOW, future_returns, volatility
from blockyard.tasks.price.data.windows import PriceTables

RIDGE_STRENGTHS = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6)
DECAY = 0.94


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


@dataclass(frozen=True)
class Past:
    """One asset up to the border, for fitting, and whole, for forecasting.

    Args:
        log_close: [T].
        returns: of one step; the first is 0. [T].
        features: [T, F], NaN while warming up.
        sigma: [T].
        end: rows that may be fitted on: the first `end`.
        horizons: steps ahead.
        levels: of the quantiles.
    """

    log_close: np.ndarray
    returns: np.ndarray
    features: np.ndarray
    sigma: np.ndarray
    end: int
    horizons: tuple[int, ...]
    levels: tuple[float, ...]

    @property
    def known(self) -> np.ndarray:
        """Returns over each horizon that lie wholly before the border; NaN elsewhere. [T, H]."""
        found = future_returns(self.log_close[: self.end], self.horizons)
        rest = np.full((len(self.log_close) - self.end, len(self.horizons)), np.nan)
        return np.concatenate([found, rest])


Result = tuple[np.ndarray, np.ndarray]


def shaped(past: Past, scale: np.ndarray, centre: np.ndarray | float = 0.0) -> Result:
    """centre + scale × the quantiles that (return − centre) ÷ scale had before the border.

    Args:
        past: the asset.
        scale: predicted standard deviation of the return over each horizon, [T, H].
        centre: predicted return, [T, H] or a number.
    """
    z = (past.known - centre) / scale
    centre = np.broadcast_to(centre, scale.shape)
    quantiles = np.empty((*scale.shape, len(past.levels)))
    for h in range(scale.shape[1]):
        seen = z[np.isfinite(z[:, h]), h]
        if len(seen) < 20:
            raise InputError(f"a baseline has {len(seen)} past returns at horizon {past.horizons[h]}; 20 are needed")
        quantiles[:, h] = centre[:, h, None] + scale[:, h, None] * np.quantile(seen, past.levels)
    return centre + np.zeros_like(scale), quantiles


def unconditional(past: Past) -> Result:
    """The distribution of past returns, the same every day: what skill is measured against."""
    ones = np.ones_like(past.known)
    _, quantiles = shaped(past, ones)
    return np.broadcast_to(np.nanmean(past.known, axis=0), ones.shape).copy(), quantiles


def random_walk(past: Past) -> Result:
    """The last price, with the past's spread around it and no drift."""
    known = past.known
    ones = np.ones_like(known)
    level = np.nanmean(known, axis=0)
    _, quantiles = shaped(past, ones, level)
    return np.zeros_like(known), quantiles - level[:, None]


def drift(past: Past) -> Result:
    """The last price plus the mean past return per step times h."""
    mean = past.returns[1 : past.end].mean()
    centre = np.broadcast_to(mean * np.asarray(past.horizons, np.float64), past.known.shape)
    return shaped(past, np.ones_like(past.known), centre)


def always_up(past: Past) -> Result:
    """Up by the mean size of a past move: a direction to beat, with the past's distribution."""
    _, quantiles = unconditional(past)
    size = np.nanmean(np.abs(past.known), axis=0)
    return np.broadcast_to(size, past.known.shape).copy(), quantiles


def historical(past: Past) -> Result:
    """σ of the last 20 returns times √h."""
    return shaped(past, past.sigma[:, None] * np.sqrt(np.asarray(past.horizons, np.float64)))


def ewma(past: Past) -> Result:
    """Exponentially weighted variance, decay 0.94 (RiskMetrics 1996), times √h."""
    square = past.returns**2
    # Begun at the mean of the first 20, so that the first days do not stand for all.
    square[0] = square[1:21].mean()
    pandas = require("pandas", extra="prices")
    variance = pandas.Series(square).ewm(alpha=1 - DECAY, adjust=False).mean().to_numpy()
    floor = 1e-12
    return shaped(past, np.sqrt(np.maximum(variance, floor))[:, None] * np.sqrt(np.asarray(past.horizons, np.float64)))


def garch(past: Past) -> Result:
    """GARCH(1,1) with Student-t errors, fitted before the border; its variance forecasts summed over the horizon.

    Raises:
        MissingExtra: when `arch` is not installed.
    """
    arch = require("arch", extra="prices")
    r = 100 * past.returns[1:]
    seen = r[: past.end - 1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = arch.arch_model(seen, mean="Constant", vol="GARCH", p=1, q=1, dist="t", rescale=False).fit(disp="off")
    mu, omega, alpha, beta = (float(fitted.params[name]) for name in ("mu", "omega", "alpha[1]", "beta[1]"))
    persistence = alpha + beta
    variance = _garch_filter(r - mu, omega, alpha, beta, float(seen.var()))
    # variance[t] is that of the step after row t; it returns to its mean at the rate of alpha + beta.
    steps = np.arange(1, max(past.horizons) + 1)
    if persistence < 1 - 1e-6:
        mean = omega / (1 - persistence)
        path = mean + (variance[:, None] - mean) * persistence ** (steps - 1)
    else:
        path = variance[:, None] + omega * (steps - 1)
    total = np.cumsum(path, axis=1)[:, np.asarray(past.horizons) - 1]
    return shaped(past, np.sqrt(np.maximum(total, 1e-12)) / 100)


def _garch_filter(e: np.ndarray, omega: float, alpha: float, beta: float, start: float) -> np.ndarray:
    """σ²_{t+1} = omega + alpha e_t² + beta σ²_t for every row; the first row, without a return, has the start. [T]."""
    signal = require("scipy.signal", extra="prices")
    driven = omega + alpha * e**2
    after, _ = signal.lfilter([1.0], [1.0, -beta], driven, zi=[beta * start])
    found: np.ndarray = np.concatenate([[start], after])
    return found


def ridge(past: Past) -> Result:
    """Linear in the same features as the model's, towards return ÷ (σ20 √h); strength chosen on the last fifth."""
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
    """Predictions for all rows of a ridge fitted on some."""
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
    "GARCH-t": garch,
}
REFERENCE, WALK = "unconditional", "random walk"


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
        names: which; None = all.

    Returns: forecasts by name, and why any is missing.
    """
    wanted: Mapping[str, Callable[[Past], Result]] = BASELINES
    if names is not None:
        for name in names:
            if name not in BASELINES:
                raise InputError(f"no baseline {name!r}{suggest(name, BASELINES)}; there are: {', '.join(BASELINES)}")
        wanted = {name: BASELINES[name] for name in names}
    found, notes = {}, []
    for name, baseline in wanted.items():
        try:
            parts = [baseline(_past(data, a, fit_until, levels)) for a in range(len(data.tables))]
        except MissingExtra as error:
            notes.append(f"{name} is left out: {error}")
            continue
        point = np.concatenate([parts[a][0][rows[assets == a]] for a in range(len(parts))])
        quantiles = np.concatenate([parts[a][1][rows[assets == a]] for a in range(len(parts))])
        found[name] = Forecast(name, point, quantiles)
    return found, notes


def _past(data: PriceTables, number: int, fit_until: object, levels: Sequence[float]) -> Past:
    table = data.tables[number]
    end = int(np.searchsorted(table.ds, fit_until, "right"))  # type: ignore[call-overload]
    returns = np.diff(table.log_close, prepend=table.log_close[0])
    # As the baselines know it: of all returns, nights among them.
    sigma = volatility(returns, TARGET_WINDOW)
    return Past(table.log_close, returns, table.values, sigma, end, data.horizons, tuple(levels))
