"""Baselines of statsforecast (extra `baselines`): the ARIMA and the exponential smoothing that fit the log price best.

Orders and coefficients come from the rows before the border; each forecast then filters the rows up to its origin with
them. Both forecast the level: their spread is the one that they state themselves, normal and the same on every day.
"""

from __future__ import annotations

import warnings
from statistics import NormalDist
from typing import Any

import numpy as np

from blockyard.errors import require
from blockyard.tasks.price.past import Past, Result

# Rows that are fitted on and filtered: the orders are settled by then, and each origin takes time in proportion.
ROWS = 1000
# Origins beyond which they are not run by themselves: at 2 ms each, and two of them, a minute.
MOST_ORIGINS = 15_000
# The interval of which the spread is read off, in per cent.
LEVEL = 90


def auto_arima(past: Past) -> Result:
    """Return ARIMA of the log price, orders by the corrected AIC (Hyndman and Khandakar 2008).

    Raises:
        MissingExtra: when `statsforecast` is not installed.
    """
    return _automatic(past, require("statsforecast.models", extra="baselines").AutoARIMA(season_length=1))


def auto_ets(past: Past) -> Result:
    """Return exponential smoothing of the log price, with a trend where that fits better (Hyndman et al. 2002).

    Raises:
        MissingExtra: when `statsforecast` is not installed.
    """
    # A log price may be negative: the error is added, not multiplied.
    return _automatic(past, require("statsforecast.models", extra="baselines").AutoETS(season_length=1, model="AZZ"))


def _automatic(past: Past, model: Any) -> Result:
    reach, places = max(past.horizons), np.asarray(past.horizons) - 1
    first = max(past.end - ROWS, 0)
    z = np.array([NormalDist().inv_cdf(level) for level in past.levels])
    edge = NormalDist().inv_cdf(0.5 + LEVEL / 200)
    point = np.full((len(past.log_close), len(past.horizons)), np.nan)
    quantiles = np.full((*point.shape, len(past.levels)), np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(past.log_close[first : past.end])
        for row in past.wanted:
            seen = past.log_close[max(row + 1 - ROWS, 0) : row + 1]
            found = model.forward(seen, h=reach, level=[LEVEL])
            mean = np.asarray(found["mean"], np.float64)[places]
            sigma = (np.asarray(found[f"hi-{LEVEL}"], np.float64)[places] - mean) / edge
            point[row] = mean - past.log_close[row]
            quantiles[row] = point[row, :, None] + sigma[:, None] * z
    return point, quantiles
