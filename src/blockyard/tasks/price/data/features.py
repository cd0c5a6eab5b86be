"""Features and targets of a price series. Everything in row t is known at the close of row t; targets look ahead.

Twenty features come from OHLCV alone; a series of closes has those that need no more. Further columns of the file
follow them. All are free of the price's unit, so that assets can share a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from blockyard.errors import InputError, require, suggest
from blockyard.tasks.price.data.table import Asset, Prices

# Rows at the start for which the longest window (60 returns) is not full.
WARM_UP = 60
TARGET_WINDOW = 20
# No estimate of volatility is less than this part of what the series has shown so far: a halted stock is not riskless.
QUIET = 0.1

RETURNS = (1, 5, 10, 20, 60)
VOLATILITIES = (5, 20, 60)
NAMES = (
    *(f"return_{k}" for k in RETURNS),
    *(f"volatility_{k}" for k in VOLATILITIES),
    "rsi", "macd", "drawdown", "weekday", "month",
    "gap", "body", "range", "close_location", "parkinson",
    "volume_z", "volume_change",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """What a model sees of one asset, row by row.

    Args:
        unique_id: the asset.
        ds: dates or row numbers, [T].
        names: the features.
        values: float64 [T, F]; NaN in the first `WARM_UP` rows.
        log_close: log price, [T].
        sigma: volatility of one step, from the last 20 returns; NaN in the first 20 rows, [T].
    """

    unique_id: str
    ds: np.ndarray
    names: tuple[str, ...]
    values: np.ndarray
    log_close: np.ndarray
    sigma: np.ndarray

    def __len__(self) -> int:
        return len(self.ds)


def feature_table(asset: Asset, names: Sequence[str] | None = None) -> FeatureTable:
    """Compute the features of one asset.

    Args:
        asset: the prices.
        names: which features, in this order; None = all that the asset's columns allow.

    Raises:
        InputError: when a named feature needs a column that the asset has not.
    """
    possible = available(asset)
    wanted = tuple(possible if names is None else names)
    for name in wanted:
        if name not in possible:
            what = "is unknown" if name not in NAMES else f"needs columns that {asset.unique_id} has not"
            raise InputError(f"feature {name!r} {what}{suggest(name, possible)}; it allows: {', '.join(possible)}")
    work = _Work(asset)
    columns = [work.feature(name) if name in NAMES else asset.extra[name] for name in wanted]
    values = np.stack(columns, axis=1) if columns else np.empty((len(asset), 0))
    values[:WARM_UP] = np.nan
    return FeatureTable(asset.unique_id, asset.ds, wanted, values, work.p, work.sigma(TARGET_WINDOW))


def available(asset: Asset) -> tuple[str, ...]:
    """The features that an asset's columns allow: the built-in ones, then its extra columns."""
    needs = {"gap": ("open",), "body": ("open",), "range": ("high", "low"), "close_location": ("high", "low"),
             "parkinson": ("high", "low"), "volume_z": ("volume",), "volume_change": ("volume",)}  # fmt: skip
    found = [name for name in NAMES if all(getattr(asset, column) is not None for column in needs.get(name, ()))]
    if not asset.dated:
        found = [name for name in found if name not in ("weekday", "month")]
    return (*found, *asset.extra)


def common_features(prices: Prices) -> tuple[str, ...]:
    """The features that all assets allow, in the usual order."""
    sets = [available(asset) for asset in prices.assets]
    return tuple(name for name in sets[0] if all(name in other for other in sets[1:]))


def targets(log_close: np.ndarray, sigma: np.ndarray, horizons: Sequence[int]) -> np.ndarray:
    """Cumulative log returns over each horizon ÷ (sigma · √h); NaN where the horizon lies beyond the end. [T, H]."""
    return future_returns(log_close, horizons) / (sigma[:, None] * np.sqrt(np.asarray(horizons, np.float64)))


def future_returns(log_close: np.ndarray, horizons: Sequence[int]) -> np.ndarray:
    """log price h steps later − log price now, [T, H]; NaN beyond the end."""
    found = np.full((len(log_close), len(horizons)), np.nan)
    for column, h in enumerate(horizons):
        if h < len(log_close):
            found[:-h, column] = log_close[h:] - log_close[:-h]
    return found


def rolling(values: np.ndarray, window: int, function: Callable[..., np.ndarray]) -> np.ndarray:
    """function(window, axis=-1) over every full window that ends at t; NaN before. No row sees a later one."""
    found = np.full(len(values), np.nan)
    if len(values) >= window:
        found[window - 1 :] = function(sliding_window_view(values, window), axis=-1)
    return found


def volatility(r: np.ndarray, window: int) -> np.ndarray:
    """Root mean square of the last `window` returns, floored at a tenth of that of all returns so far.

    The mean is taken as 0: a day's drift is a hundredth of its noise. r[0] is no return and is left out. [T].
    """
    square = r**2
    found = np.full(len(r), np.nan)
    found[1:] = np.sqrt(rolling(square[1:], window, np.mean))
    # Before the first change of price any number will do: no window that reaches so far back is used.
    so_far = np.sqrt(np.cumsum(square) / np.maximum(np.arange(len(r)), 1))
    return np.maximum(found, np.maximum(QUIET * so_far, 1e-12))


class _Work:
    """The columns that several features share, computed once."""

    def __init__(self, asset: Asset) -> None:
        self.asset = asset
        self.p = np.log(asset.close)
        self.r = np.diff(self.p, prepend=self.p[0])
        self._sigma: dict[int, np.ndarray] = {}

    def sigma(self, window: int) -> np.ndarray:
        if window not in self._sigma:
            self._sigma[window] = volatility(self.r, window)
        return self._sigma[window]

    def feature(self, name: str) -> np.ndarray:
        kind, _, number = name.rpartition("_")
        if kind == "return":
            return self._return(int(number))
        if kind == "volatility":
            return np.log(self.sigma(int(number)))
        found: np.ndarray = getattr(self, f"_{name}")()
        return found

    def _return(self, k: int) -> np.ndarray:
        """log(C_t / C_{t−k}) ÷ (σ60 √k)."""
        found = np.full(len(self.p), np.nan)
        found[k:] = self.p[k:] - self.p[:-k]
        return found / (self.sigma(60) * np.sqrt(k))

    def _rsi(self) -> np.ndarray:
        """Wilder's relative strength over 14 steps, −1 … 1 (the usual 0 … 100, centred)."""
        up, down = _ewm(np.maximum(self.r, 0.0), 1 / 14), _ewm(np.maximum(-self.r, 0.0), 1 / 14)
        return (up - down) / np.maximum(up + down, 1e-12)

    def _macd(self) -> np.ndarray:
        """EMA12 − EMA26 of the log price ÷ σ20."""
        return (_ewm(self.p, 2 / 13) - _ewm(self.p, 2 / 27)) / self.sigma(20)

    def _drawdown(self) -> np.ndarray:
        """Log distance below the highest close of the last 250 rows (of those there are, at first) ÷ σ60."""
        pandas = require("pandas", extra="prices")
        highest = pandas.Series(self.p).rolling(250, min_periods=1).max().to_numpy()
        return (self.p - highest) / self.sigma(60)

    def _weekday(self) -> np.ndarray:
        """Monday −1 … Friday 1."""
        days = self.asset.ds.astype("datetime64[D]").astype(np.int64)
        # 1970-01-01 was a Thursday.
        return ((days + 3) % 7 - 2) / 2.0

    def _month(self) -> np.ndarray:
        """January −1 … December 1."""
        return (self.asset.ds.astype("datetime64[M]").astype(np.int64) % 12 - 5.5) / 5.5

    def _gap(self) -> np.ndarray:
        """log(O_t / C_{t−1}) ÷ σ60."""
        return np.diff(self.p, prepend=np.nan) / self.sigma(60) - self._body()

    def _body(self) -> np.ndarray:
        """log(C / O) ÷ σ60."""
        return (self.p - np.log(self._bar("open"))) / self.sigma(60)

    def _range(self) -> np.ndarray:
        """log(H / L) ÷ σ60."""
        return self._height() / self.sigma(60)

    def _close_location(self) -> np.ndarray:
        """Where the close lies between low (−1) and high (1); 0 for a bar without height."""
        high, low = np.log(self._bar("high")), np.log(self._bar("low"))
        height = high - low
        return np.divide(2 * self.p - high - low, height, out=np.zeros_like(height), where=height > 0)

    def _parkinson(self) -> np.ndarray:
        """Log volatility from the range of 20 bars: mean of log(H/L)² ÷ (4 ln 2) (Parkinson 1980)."""
        square = rolling(self._height() ** 2, 20, np.mean) / (4 * np.log(2))
        return np.log(np.maximum(np.sqrt(square), QUIET * self.sigma(60)))

    def _volume_z(self) -> np.ndarray:
        """Log volume against mean and standard deviation of the last 20."""
        v = np.log1p(self._bar("volume"))
        return (v - rolling(v, 20, np.mean)) / np.maximum(rolling(v, 20, np.std), 1e-2)

    def _volume_change(self) -> np.ndarray:
        """Log volume minus that of the row before."""
        return np.diff(np.log1p(self._bar("volume")), prepend=np.nan)

    def _height(self) -> np.ndarray:
        return np.log(self._bar("high") / self._bar("low"))

    def _bar(self, column: str) -> np.ndarray:
        values: np.ndarray = getattr(self.asset, column)
        return values


def _ewm(values: np.ndarray, alpha: float) -> np.ndarray:
    """Exponentially weighted mean, y_t = alpha x_t + (1 − alpha) y_{t−1}."""
    pandas = require("pandas", extra="prices")
    found: np.ndarray = pandas.Series(values).ewm(alpha=alpha, adjust=False).mean().to_numpy()
    return found
