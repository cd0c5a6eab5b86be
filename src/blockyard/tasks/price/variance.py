"""Baselines that forecast how far prices move: σ of the past, EWMA, HAR, GARCH and GJR-GARCH.

Each predicts the standard deviation of the return over every horizon; the shape around it is that of the past.
"""

from __future__ import annotations

import warnings

import numpy as np

from blockyard.errors import InputError, require
from blockyard.tasks.price.data.features import QUIET, rolling
from blockyard.tasks.price.past import Past, Result, shaped

DECAY = 0.94
# Steps over which HAR looks back: a day, a week, a month of trading days (Corsi 2009).
HAR_WINDOWS = (1, 5, 22)


def historical(past: Past) -> Result:
    """Return σ of the last 20 returns times √h."""
    return shaped(past, past.sigma[:, None] * np.sqrt(np.asarray(past.horizons, np.float64)))


def ewma(past: Past) -> Result:
    """Return exponentially weighted variance, decay 0.94 (RiskMetrics 1996), times √h."""
    square = past.returns**2
    # Begun at the mean of the first 20, so that the first days do not stand for all.
    square[0] = square[1:21].mean()
    pandas = require("pandas", extra="prices")
    variance = pandas.Series(square).ewm(alpha=1 - DECAY, adjust=False).mean().to_numpy()
    floor = 1e-12
    return shaped(past, np.sqrt(np.maximum(variance, floor))[:, None] * np.sqrt(np.asarray(past.horizons, np.float64)))


def har(past: Past) -> Result:
    """Return heterogeneous autoregression: σ over the next h steps, linear in that of the last 1, 5 and 22.

    Corsi 2009 in the form of square roots, fitted by least squares for each horizon alone, so that no forecast is
    iterated. Of one step the realised volatility is |return|: there are no prices within it.

    Raises:
        InputError: when fewer than 50 rows before the border have all of it.
    """
    square = past.returns**2
    # The first row has no return.
    square[0] = np.nan
    x = np.stack([np.sqrt(rolling(square, window, np.mean)) for window in HAR_WINDOWS], axis=1)
    x = np.concatenate([np.ones((len(x), 1)), x], axis=1)
    complete = np.isfinite(x).all(axis=1)
    sigma = np.full((len(x), len(past.horizons)), np.nan)
    for column, h in enumerate(past.horizons):
        ahead = np.full(len(x), np.nan)
        if len(x) > h:
            ahead[:-h] = np.sqrt(rolling(square, h, np.mean)[h:])
        # Of rows before the border the outcome is known to the end, too.
        rows = np.flatnonzero(complete[: past.end] & (np.arange(past.end) + h < past.end))
        if len(rows) < 50:
            raise InputError(f"HAR has {len(rows)} complete rows before the border at horizon {h}; 50 are needed")
        weights, *_ = np.linalg.lstsq(x[rows], ahead[rows], rcond=None)
        # A line can fall below 0; what was never seen is not believed.
        least = max(QUIET * float(ahead[rows].mean()), 1e-12)
        sigma[complete, column] = np.maximum(x[complete] @ weights, least)
    return shaped(past, sigma * np.sqrt(np.asarray(past.horizons, np.float64)))


def garch(past: Past) -> Result:
    """Return GARCH(1,1) with Student-t errors, fitted before the border; its variance forecasts summed over the
    horizon.

    Raises:
        MissingExtra: when `arch` is not installed.
    """
    return _garch(past, leverage=False)


def gjr_garch(past: Past) -> Result:
    """Return GARCH-t in which falls raise volatility more than rises do (Glosten, Jagannathan and Runkle 1993).

    Raises:
        MissingExtra: when `arch` is not installed.
    """
    return _garch(past, leverage=True)


def _garch(past: Past, *, leverage: bool) -> Result:
    arch = require("arch", extra="prices")
    r = 100 * past.returns[1:]
    seen = r[: past.end - 1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = arch.arch_model(seen, mean="Constant", vol="GARCH", p=1, o=int(leverage), q=1, dist="t", rescale=False)
        fitted = model.fit(disp="off")
    mu, omega, alpha, beta = (float(fitted.params[name]) for name in ("mu", "omega", "alpha[1]", "beta[1]"))
    gamma = float(fitted.params["gamma[1]"]) if leverage else 0.0
    # Half of all errors fall, as their distribution is symmetric.
    persistence = alpha + gamma / 2 + beta
    variance = _garch_filter(r - mu, omega, alpha, gamma, beta, float(seen.var()))
    # variance[t] is that of the step after row t; it returns to its mean at the rate of alpha + beta.
    steps = np.arange(1, max(past.horizons) + 1)
    if persistence < 1 - 1e-6:
        mean = omega / (1 - persistence)
        path = mean + (variance[:, None] - mean) * persistence ** (steps - 1)
    else:
        path = variance[:, None] + omega * (steps - 1)
    total = np.cumsum(path, axis=1)[:, np.asarray(past.horizons) - 1]
    return shaped(past, np.sqrt(np.maximum(total, 1e-12)) / 100)


def _garch_filter(e: np.ndarray, omega: float, alpha: float, gamma: float, beta: float, start: float) -> np.ndarray:
    """Compute σ²_{t+1} = omega + (alpha + gamma [e_t < 0]) e_t² + beta σ²_t; the first row, without a return, has the
    start.

    [T].
    """
    signal = require("scipy.signal", extra="prices")
    driven = omega + (alpha + gamma * (e < 0)) * e**2
    after, _ = signal.lfilter([1.0], [1.0, -beta], driven, zi=[beta * start])
    found: np.ndarray = np.concatenate([[start], after])
    return found
