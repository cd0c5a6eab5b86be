"""Features and targets of a price series. Everything in row t is known at the close of row t; targets look ahead.

Twenty features come from OHLCV alone; a series of closes has those that need no more. Bars within a day have the time
of day besides, and the night's return where their market closes. Further columns of the file follow them, and what is
known in advance (covariates.py). All are free of the price's unit, so that assets can share a model.

σ is the volatility of one step: the root mean square of the last returns that are of one step. Returns over a night are
measured apart (σ of nights), those over a hole are left out of everything; see steps.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from blockyard.errors import InputError, require, suggest
from blockyard.tasks.price.data.covariates import covariate, covariate_names
from blockyard.tasks.price.data.rhythm import DAY
from blockyard.tasks.price.data.steps import Steps, alike, find_steps
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
    "rsi",
    "macd",
    "drawdown",
    "weekday",
    "month",
    "gap",
    "body",
    "range",
    "close_location",
    "parkinson",
    "volume_z",
    "volume_change",
)
# Features of bars within a day: of a market with daily sessions, of others, and of those that close at all.
SESSION, OF_DAY, NIGHTS = ("session_sin", "session_cos"), ("day_sin", "day_cos"), ("opens", "overnight")
WITHIN_DAYS = (*SESSION, *OF_DAY, *NIGHTS)


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """What a model sees of one asset, row by row.

    Args:
        unique_id: the asset.
        ds: dates or row numbers, [T].
        names: the features.
        values: float64 [T, F]; NaN in the first `WARM_UP` rows.
        log_close: log price, less the returns over holes before, [T].
        sigma: volatility of one step, from the last 20 returns of one step; NaN in the first 20 rows, [T].
        steps: which rows follow a night or a hole.
        night_sigma: volatility of a night, from the last 20 nights, at least that of a step, [T]; None without nights.
        skipped: the returns over holes up to each row, which `log_close` leaves out, [T].
    """

    unique_id: str
    ds: np.ndarray
    names: tuple[str, ...]
    values: np.ndarray
    log_close: np.ndarray
    sigma: np.ndarray
    steps: Steps
    night_sigma: np.ndarray | None
    skipped: np.ndarray

    def __len__(self) -> int:
        return len(self.ds)

    @property
    def price(self) -> np.ndarray:
        """Prices, [T]."""
        found: np.ndarray = np.exp(self.log_close + self.skipped)
        return found

    def unit(self, horizons: Sequence[int]) -> np.ndarray:
        """Return what a return over h steps is divided by: σ √h, or √(σ² (h − n) + σ_night² n) with n nights ahead. [T,
        H]."""
        h = np.asarray(horizons, np.float64)
        sessions = self.steps.sessions
        if self.night_sigma is None or sessions is None:
            return self.sigma[:, None] * np.sqrt(h)
        nights = np.minimum(sessions.nights(self.ds, horizons), h)
        found: np.ndarray = np.sqrt(self.sigma[:, None] ** 2 * (h - nights) + self.night_sigma[:, None] ** 2 * nights)
        return found


def feature_table(asset: Asset, names: Sequence[str] | None = None, *, apart: bool = True) -> FeatureTable:
    """Compute the features of one asset.

    Args:
        asset: the prices.
        names: which features, in this order; None = all that the asset's columns allow.
        apart: tell returns over nights and holes from those of a step; else every return is of one step.

    Raises:
        InputError: when a named feature needs a column that the asset has not.
    """
    steps = find_steps(asset.ds) if apart else alike(asset.ds)
    known = _built_in(asset, steps)
    possible = (*known, *covariate_names(asset))
    wanted = tuple(possible if names is None else names)
    work = _Work(asset, steps)
    columns = []
    for name in wanted:
        found = work.feature(name) if name in known else covariate(asset, name, wanted)
        if found is None:
            unknown = name not in (*NAMES, *WITHIN_DAYS)
            what = "is unknown" if unknown else f"needs columns that {asset.unique_id} has not"
            raise InputError(f"feature {name!r} {what}{suggest(name, possible)}; it allows: {', '.join(possible)}")
        columns.append(found)
    values = np.stack(columns, axis=1) if columns else np.empty((len(asset), 0))
    values[:WARM_UP] = np.nan
    sigma = work.sigma(TARGET_WINDOW)
    nights = work.night_sigma if steps.night.any() else None
    return FeatureTable(asset.unique_id, asset.ds, wanted, values, work.p, sigma, steps, nights, work.skipped)


def available(asset: Asset, horizons: Sequence[int] = (), *, apart: bool = True) -> tuple[str, ...]:
    """Return the features that an asset's columns allow: the built-in ones, then its further columns, then what is
    known in advance of each horizon."""
    steps = find_steps(asset.ds) if apart else alike(asset.ds)
    return (*_built_in(asset, steps), *covariate_names(asset, horizons))


def _built_in(asset: Asset, steps: Steps) -> tuple[str, ...]:
    needs = {
        "gap": ("open",),
        "body": ("open",),
        "range": ("high", "low"),
        "close_location": ("high", "low"),
        "parkinson": ("high", "low"),
        "volume_z": ("volume",),
        "volume_change": ("volume",),
    }
    found = [name for name in NAMES if all(getattr(asset, column) is not None for column in needs.get(name, ()))]
    if not asset.dated:
        found = [name for name in found if name not in ("weekday", "month")]
    sessions = steps.sessions
    of_day = SESSION if sessions is not None and sessions.period == DAY else OF_DAY
    return (*found, *(of_day if steps.intraday else ()), *(NIGHTS if sessions is not None else ()))


def common_features(prices: Prices, horizons: Sequence[int] = ()) -> tuple[str, ...]:
    """Return the features that all assets allow, in the usual order."""
    sets = [available(asset, horizons, apart=prices.apart) for asset in prices.assets]
    return tuple(name for name in sets[0] if all(name in other for other in sets[1:]))


def targets(table: FeatureTable, horizons: Sequence[int]) -> np.ndarray:
    """Return cumulative log returns over each horizon ÷ σ √h (see `unit`); NaN where one lies beyond the end. [T,
    H]."""
    return future_returns(table.log_close, horizons) / table.unit(horizons)


def future_returns(log_close: np.ndarray, horizons: Sequence[int]) -> np.ndarray:
    """Return log price h steps later − log price now, [T, H]; NaN beyond the end."""
    found = np.full((len(log_close), len(horizons)), np.nan)
    for column, h in enumerate(horizons):
        if h < len(log_close):
            found[:-h, column] = log_close[h:] - log_close[:-h]
    return found


def rolling(values: np.ndarray, window: int, function: Callable[..., np.ndarray]) -> np.ndarray:
    """Compute function(window, axis=-1) over every full window that ends at t; NaN before. No row sees a later one."""
    found = np.full(len(values), np.nan)
    if len(values) >= window:
        found[window - 1 :] = function(sliding_window_view(values, window), axis=-1)
    return found


def volatility(r: np.ndarray, window: int, counted: np.ndarray | None = None) -> np.ndarray:
    """Return the root mean square of the last `window` returns, floored at a tenth of that of all returns so far.

    The mean is taken as 0: a day's drift is a hundredth of its noise. r[0] is no return and is left out. [T].

    Args:
        r: returns, [T].
        window: how many.
        counted: which returns count, [T]; None = all. Where fewer than `window` have been counted, those there are do.
    """
    if counted is not None:
        found = mean_square(r, window, counted)
        so_far = mean_square(r, len(r), counted)
        return np.sqrt(np.maximum(found, np.maximum(QUIET**2 * so_far, 1e-24)))
    square = r**2
    found = np.full(len(r), np.nan)
    found[1:] = np.sqrt(rolling(square[1:], window, np.mean))
    # Before the first change of price any number will do: no window that reaches so far back is used.
    so_far = np.sqrt(np.cumsum(square) / np.maximum(np.arange(len(r)), 1))
    return np.maximum(found, np.maximum(QUIET * so_far, 1e-12))


def mean_square(r: np.ndarray, window: int, counted: np.ndarray) -> np.ndarray:
    """Return the mean square of the last `window` returns that count, or of those there are; 0 before the first.
    [T]."""
    square = r[counted] ** 2
    early = np.cumsum(square) / np.maximum(np.arange(1, len(square) + 1), 1)
    full = rolling(square, window, np.mean)
    means = np.append(0.0, np.where(np.isnan(full), early, full))
    found: np.ndarray = means[np.cumsum(counted)]
    return found


class _Work:
    """The columns that several features share, computed once."""

    def __init__(self, asset: Asset, steps: Steps) -> None:
        self.asset, self.steps = asset, steps
        p = np.log(asset.close)
        self.r = np.diff(p, prepend=p[0])
        self.skipped = np.zeros(len(p))
        if steps.hole.any():
            # Nothing later shows how far the price went while nobody looked.
            self.skipped = np.cumsum(np.where(steps.hole, self.r, 0.0))
            self.r = np.where(steps.hole, 0.0, self.r)
        self.p = p - self.skipped
        self._sigma: dict[int, np.ndarray] = {}

    def sigma(self, window: int) -> np.ndarray:
        if window not in self._sigma:
            counted = None if self.steps.plain else self.steps.within
            self._sigma[window] = volatility(self.r, window, counted)
        return self._sigma[window]

    @cached_property
    def night_sigma(self) -> np.ndarray:
        """Volatility of a night: root mean square of the last 20 (of those there are), and not less than a step's."""
        square = mean_square(self.r, TARGET_WINDOW, self.steps.night)
        return np.maximum(np.sqrt(square), self.sigma(TARGET_WINDOW))

    def _past_unit(self, k: int) -> np.ndarray:
        """Return what a return over the last k steps is divided by: σ60 √k, and a night counts as one. [T]."""
        if self.steps.plain:
            return self.sigma(60) * np.sqrt(k)
        nights, holes = (np.cumsum(flags) for flags in (self.steps.night, self.steps.hole))
        for passed in (nights, holes):
            passed[k:] = passed[k:] - passed[:-k].copy()
        steps = np.maximum(k - nights - holes, 0)
        square = self.sigma(60) ** 2 * steps + self.night_sigma**2 * nights
        # Where a hole alone lies between, the return is 0.
        return np.sqrt(np.where(square > 0, square, 1.0))

    def feature(self, name: str) -> np.ndarray:
        kind, _, number = name.rpartition("_")
        if kind == "return":
            return self._return(int(number))
        if kind == "volatility":
            return np.log(self.sigma(int(number)))
        found: np.ndarray = getattr(self, f"_{name}")()
        return found

    def _return(self, k: int) -> np.ndarray:
        """Compute log(C_t / C_{t−k}) ÷ (σ60 √k)."""
        found = np.full(len(self.p), np.nan)
        found[k:] = self.p[k:] - self.p[:-k]
        return found / self._past_unit(k)

    def _rsi(self) -> np.ndarray:
        """Return Wilder's relative strength over 14 steps, −1 … 1 (the usual 0 … 100, centred)."""
        up, down = _ewm(np.maximum(self.r, 0.0), 1 / 14), _ewm(np.maximum(-self.r, 0.0), 1 / 14)
        return (up - down) / np.maximum(up + down, 1e-12)

    def _macd(self) -> np.ndarray:
        """Return EMA12 − EMA26 of the log price ÷ σ20."""
        return (_ewm(self.p, 2 / 13) - _ewm(self.p, 2 / 27)) / self.sigma(20)

    def _drawdown(self) -> np.ndarray:
        """Log distance below the highest close of the last 250 rows (of those there are, at first) ÷ σ60."""
        pandas = require("pandas", extra="prices")
        highest = pandas.Series(self.p).rolling(250, min_periods=1).max().to_numpy()
        return (self.p - highest) / self.sigma(60)

    def _weekday(self) -> np.ndarray:
        """Return Monday −1 … Friday 1."""
        days = self.asset.ds.astype("datetime64[D]").astype(np.int64)
        # 1970-01-01 was a Thursday.
        return ((days + 3) % 7 - 2) / 2.0

    def _month(self) -> np.ndarray:
        """Return January −1 … December 1."""
        return (self.asset.ds.astype("datetime64[M]").astype(np.int64) % 12 - 5.5) / 5.5

    def _gap(self) -> np.ndarray:
        """Compute log(O_t / C_{t−1}) ÷ σ60, of a night ÷ its σ; 0 over a hole."""
        if self.steps.plain:
            return np.diff(self.p, prepend=np.nan) / self.sigma(60) - self._body()
        between = self.r - (self.p + self.skipped - np.log(self._bar("open")))
        return np.where(self.steps.hole, 0.0, between) / np.where(self.steps.night, self.night_sigma, self.sigma(60))

    def _body(self) -> np.ndarray:
        """Compute log(C / O) ÷ σ60."""
        return (self.p + self.skipped - np.log(self._bar("open"))) / self.sigma(60)

    def _range(self) -> np.ndarray:
        """Compute log(H / L) ÷ σ60."""
        return self._height() / self.sigma(60)

    def _close_location(self) -> np.ndarray:
        """Return where the close lies between low (−1) and high (1); 0 for a bar without height."""
        high, low = np.log(self._bar("high")), np.log(self._bar("low"))
        height = high - low
        return np.divide(2 * (self.p + self.skipped) - high - low, height, out=np.zeros_like(height), where=height > 0)

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

    def _session_sin(self) -> np.ndarray:
        """Return 0 when the market opens and closes, 1 halfway: half a turn, so that both ends differ in the cosine."""
        return np.sin(np.pi * self._of_session())

    def _session_cos(self) -> np.ndarray:
        """Return 1 when the market opens, −1 when it closes."""
        return np.cos(np.pi * self._of_session())

    def _of_session(self) -> np.ndarray:
        sessions = self.steps.sessions
        assert sessions is not None
        part: np.ndarray = np.minimum(sessions.since_opening(self.asset.ds) / sessions.slots[-1], 1.0)
        return part

    def _day_sin(self) -> np.ndarray:
        return np.sin(2 * np.pi * self._of_day())

    def _day_cos(self) -> np.ndarray:
        return np.cos(2 * np.pi * self._of_day())

    def _of_day(self) -> np.ndarray:
        """Return the part of the day that has passed, on the clock of `ds`."""
        seconds: np.ndarray = self.asset.ds.astype("datetime64[s]").astype(np.int64) % DAY
        return seconds / DAY

    def _opens(self) -> np.ndarray:
        """Return 1 for the bar after a night, whose return is the night's, else 0."""
        return self.steps.night.astype(np.float64)

    def _overnight(self) -> np.ndarray:
        """Return the last night's return ÷ the σ of nights, from the bar that opens the session to its end; 0 before
        any."""
        nights = np.flatnonzero(self.steps.night)
        z = np.append(0.0, self.r[nights] / self.night_sigma[nights])
        found: np.ndarray = z[np.cumsum(self.steps.night)]
        return found

    def _height(self) -> np.ndarray:
        return np.log(self._bar("high") / self._bar("low"))

    def _bar(self, column: str) -> np.ndarray:
        values: np.ndarray = getattr(self.asset, column)
        return values


def _ewm(values: np.ndarray, alpha: float) -> np.ndarray:
    """Return exponentially weighted mean, y_t = alpha x_t + (1 − alpha) y_{t−1}."""
    pandas = require("pandas", extra="prices")
    found: np.ndarray = pandas.Series(values).ewm(alpha=alpha, adjust=False).mean().to_numpy()
    return found
