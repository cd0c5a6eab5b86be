"""What a baseline knows of an asset, and the shape that its forecasts take from the past."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from blockyard.errors import InputError
from blockyard.tasks.price.data.features import future_returns


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
        wanted: the rows from which a forecast is asked for, rising; others may be left at NaN where they cost time.
    """

    log_close: np.ndarray
    returns: np.ndarray
    features: np.ndarray
    sigma: np.ndarray
    end: int
    horizons: tuple[int, ...]
    levels: tuple[float, ...]
    wanted: np.ndarray

    @property
    def known(self) -> np.ndarray:
        """Returns over each horizon that lie wholly before the border; NaN elsewhere. [T, H]."""
        found = future_returns(self.log_close[: self.end], self.horizons)
        rest = np.full((len(self.log_close) - self.end, len(self.horizons)), np.nan)
        return np.concatenate([found, rest])


Result = tuple[np.ndarray, np.ndarray]


def shaped(past: Past, scale: np.ndarray, centre: np.ndarray | float = 0.0) -> Result:
    """Return centre + scale × the quantiles that (return − centre) ÷ scale had before the border.

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
