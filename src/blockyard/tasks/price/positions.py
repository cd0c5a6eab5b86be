"""From forecasts to weights: what is held of every asset, decided at the close of a date with what is known then.

    rule        sign, volatility, or rank across assets; a weight is a part of the capital, negative when short
    target      all weights times one factor, so that the predicted volatility of the whole is as asked
    limits      gross (sum of sizes), then net (size of the sum): weights are scaled down, never up

Equal parts go to the assets that are traded at the time: those with a forecast on the date or shortly before it, as
markets have holidays of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

from blockyard.errors import InputError, require
from blockyard.tasks.price.baselines import Forecast
from blockyard.tasks.price.data.rhythm import steps_per_year
from blockyard.tasks.price.data.windows import PriceTables

Rule = Literal["sign", "volatility", "rank"]
RULES = ("sign", "volatility", "rank")
# Long positions that are scaled by predicted volatility are bounded by this factor of their part of the capital.
MOST_LEVERAGE = 2.0
# Dates for which an asset without a row counts as traded, with its last forecast.
STALE = 5
# Rows of the past from which correlations between assets are taken.
MEMORY = 250


@dataclass(frozen=True)
class BacktestConfig:
    """How forecasts become positions.

    Args:
        lag: steps from the forecast's close to the close at which the position is taken.
        cost: paid per unit of position changed, as a fraction of price (0.0005 = 5 basis points).
        steps_per_year: for annual figures; none means as many as the series has (252 for weekdays).
        horizon: the forecast that decides, in steps; one that the model has.
        rule: `sign` holds +1 or −1 by the forecast's sign; `volatility` is long, less when the predicted interval is
            wide (so that the position's own volatility stays even), and asks nothing of direction; `rank` is long the
            top and short the bottom of several assets, by predicted mean over predicted width.
        tails: the part of the assets that `rank` holds long, and the part that it holds short; at least one each.
        target_volatility: volatility a year that all positions together are scaled to, by the predicted widths and the
            past's correlations (0.1 = 10 %); none leaves them.
        gross: the most that the sizes of all positions may sum to, as a multiple of capital.
        net: the most that longs may exceed shorts, or shorts longs, as a multiple of capital; none is no limit.
    """

    lag: int = 1
    cost: float = 0.0005
    steps_per_year: int | None = None
    horizon: int = 1
    rule: Rule = "sign"
    tails: float = 0.2
    target_volatility: float | None = None
    gross: float = 2.0
    net: float | None = None

    def __post_init__(self) -> None:
        if self.lag < 0:
            raise InputError(
                f"lag={self.lag} should be at least 0; 0 trades at the very close that it was decided with"
            )
        if not 0 <= self.cost < 1:
            raise InputError(f"cost={self.cost} should be a fraction of price, at least 0 and below 1")
        if self.steps_per_year is not None and self.steps_per_year < 1:
            raise InputError(f"steps_per_year={self.steps_per_year} should be at least 1")
        if self.rule not in RULES:
            raise InputError(f"rule={self.rule!r} is not one of: {', '.join(RULES)}")
        if not 0 < self.tails <= 0.5:
            raise InputError(f"tails={self.tails} should be a part of the assets above 0 and at most 0.5")
        if self.target_volatility is not None and not 0 < self.target_volatility < np.inf:
            raise InputError(
                f"target_volatility={self.target_volatility} should be above 0, such as 0.1 for 10 % a year"
            )
        if not 0 < self.gross < np.inf:
            raise InputError(f"gross={self.gross} should be a multiple of capital above 0")
        if self.net is not None and not 0 <= self.net < np.inf:
            raise InputError(f"net={self.net} should be a multiple of capital, at least 0")

    def describe(self) -> str:
        """Return the settings in a line."""
        words = [
            f"rule {self.rule}",
            f"horizon {self.horizon}",
            f"lag {self.lag}",
            f"cost {self.cost:g} per unit traded",
        ]
        if self.rule == "rank":
            words.insert(1, f"tails {self.tails:g}")
        if self.target_volatility is not None:
            words.append(f"target volatility {self.target_volatility:.1%} a year")
        words.append(f"gross at most {self.gross:g}")
        if self.net is not None:
            words.append(f"net at most {self.net:g}")
        return ", ".join(words)


def check_horizon(config: BacktestConfig, horizons: tuple[int, ...]) -> None:
    """Refuse a horizon that is not forecast."""
    if config.horizon not in horizons:
        raise InputError(f"horizon={config.horizon} is not forecast; these are: {', '.join(map(str, horizons))}")


def check_assets(config: BacktestConfig, tables: PriceTables) -> None:
    """Refuse rules that need several assets for one."""
    if config.rule == "rank" and len(tables.tables) < 2:
        raise InputError(
            f"rule=rank orders assets, and {tables.prices.source} has one; give several, or --rule sign or volatility"
        )


def year_of(data: PriceTables, config: BacktestConfig) -> int:
    """Return steps of a year: as configured, else the median over the assets."""
    return config.steps_per_year or int(np.median([steps_per_year(table.ds) for table in data.tables]))


def decide(
    data: PriceTables,
    assets: np.ndarray,
    rows: np.ndarray,
    forecast: Forecast,
    config: BacktestConfig,
    levels: tuple[float, ...],
) -> np.ndarray | None:
    """Return the weight of its asset that is decided at each origin, [N].

    Nothing after an origin's date moves its weight: the usual width is the median of those seen so far, correlations
    are those of rows up to the date.

    Args:
        data: the assets.
        assets: asset number of each origin.
        rows: row of each origin.
        forecast: log returns from the origins.
        config: how they become positions.
        levels: of the forecast's quantiles.

    Returns: None when the forecast has no quantiles, and the rule or a target asks for its width.

    Raises:
        InputError: for a horizon that is not forecast, or one asset where the rule ranks.
    """
    check_horizon(config, data.horizons)
    check_assets(config, data)
    column = data.horizons.index(config.horizon)
    needs_width = config.rule != "sign" or config.target_volatility is not None
    if needs_width and (forecast.quantiles is None or len(levels) < 2):
        return None
    panel = Panel.of(data, assets, rows)
    point = panel.as_table(forecast.point[:, column])
    width = np.full(point.shape, np.nan)
    if forecast.quantiles is not None and len(levels) >= 2:
        # No asset is without risk.
        own = np.maximum(forecast.quantiles[:, column, -1] - forecast.quantiles[:, column, 0], 1e-12)
        width = panel.as_table(own)
    traded = panel.carry(point)
    if config.rule == "sign":
        weights = equal_parts(np.sign(traded))
    elif config.rule == "volatility":
        weights = equal_parts(panel.carry(np.clip(_usual(width) / width, 0.0, MOST_LEVERAGE)))
    else:
        weights = ranked(traded / panel.carry(width), config.tails)
    if config.target_volatility is not None:
        span = NormalDist().inv_cdf(levels[-1]) - NormalDist().inv_cdf(levels[0])
        sigma = panel.carry(width) / span / np.sqrt(config.horizon)
        predicted = portfolio_volatility(data, panel.dates, weights, sigma) * np.sqrt(year_of(data, config))
        weights = weights * (config.target_volatility / np.maximum(predicted, 1e-12))[:, None]
    return panel.at(limited(weights, config.gross, config.net))


@dataclass(frozen=True)
class Panel:
    """Dates times assets, and where each origin stands in it.

    Args:
        dates: of the origins, each once, rising.
        assets: how many there are.
        place: of each origin's date, [N].
        number: of each origin's asset, [N].
    """

    dates: np.ndarray
    assets: int
    place: np.ndarray
    number: np.ndarray

    @classmethod
    def of(cls, data: PriceTables, assets: np.ndarray, rows: np.ndarray) -> Panel:
        """Lay out the origins, each the row of an asset."""
        dates, place = np.unique(data.dates(assets, rows), return_inverse=True)
        return cls(dates, len(data.tables), place, assets)

    def at(self, values: np.ndarray) -> np.ndarray:
        """Return what [dates, assets] has for each origin, [N]."""
        found: np.ndarray = values[self.place, self.number]
        return found

    def as_table(self, values: np.ndarray) -> np.ndarray:
        """Return one value per origin as [dates, assets]; NaN where there is none."""
        found = np.full((len(self.dates), self.assets), np.nan)
        found[self.place, self.number] = values
        return found

    def carry(self, values: np.ndarray) -> np.ndarray:
        """Return the same with the last value in the place of up to `STALE` missing ones."""
        pandas = require("pandas", extra="prices")
        found: np.ndarray = pandas.DataFrame(values).ffill(limit=STALE).to_numpy()
        return found


def _usual(width: np.ndarray) -> np.ndarray:
    """Return the median of the widths seen so far, column by column: that of the whole span would look ahead. [dates,
    assets]."""
    pandas = require("pandas", extra="prices")
    found: np.ndarray = pandas.DataFrame(width).expanding().median().to_numpy()
    return found


def equal_parts(raw: np.ndarray) -> np.ndarray:
    """Return positions as parts of the capital: divided by the number of assets traded, 0 for others. [dates,
    assets]."""
    count = np.isfinite(raw).sum(axis=1, keepdims=True)
    return np.nan_to_num(raw) / np.maximum(count, 1)


def ranked(score: np.ndarray, tails: float) -> np.ndarray:
    """Return half the capital long in the assets of the highest scores, half short in those of the lowest, in equal
    parts.

    Equal scores share what their places get, so that nothing hangs on the order of files: a forecast that says the
    same of all assets holds none.

    Args:
        score: [dates, assets], NaN for an asset that is not traded.
        tails: the part of the assets in each tail; at least one each.
    """
    weights = np.zeros(score.shape)
    for date, row in enumerate(score):
        known = np.flatnonzero(np.isfinite(row))
        if len(known) < 2:
            continue
        # A hair more, so that .3 of 10 is 3.
        count = max(1, int(len(known) * tails + 1e-9))
        places = np.zeros(len(known))
        places[:count], places[-count:] = -0.5 / count, 0.5 / count
        _, group, sizes = np.unique(row[known], return_inverse=True, return_counts=True)
        # Ascending groups take the places in turn.
        shared = np.bincount(np.repeat(np.arange(len(sizes)), sizes), weights=places) / sizes
        weights[date, known] = shared[group]
    return weights


def limited(weights: np.ndarray, gross: float, net: float | None) -> np.ndarray:
    """Return weights scaled down to the limits: all of them for gross, then the larger side for net. [dates,
    assets]."""
    size = np.abs(weights).sum(axis=1, keepdims=True)
    weights = weights * np.minimum(1.0, gross / np.maximum(size, 1e-12))
    if net is None:
        return weights
    longs, shorts = np.maximum(weights, 0.0), np.maximum(-weights, 0.0)
    sum_long, sum_short = (side.sum(axis=1, keepdims=True) for side in (longs, shorts))
    longs = longs * np.minimum(1.0, (sum_short + net) / np.maximum(sum_long, 1e-12))
    shorts = shorts * np.minimum(1.0, (sum_long + net) / np.maximum(sum_short, 1e-12))
    return longs - shorts


def portfolio_volatility(data: PriceTables, grid: np.ndarray, weights: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Return predicted volatility of one step of all positions together, [dates].

    √(v' C v) with v = weight × predicted σ and C the correlations of the returns of the last `MEMORY` dates (about 0; a
    closed market's is 0). Before an asset's first row it correlates with nothing.

    Args:
        data: the assets.
        grid: dates of the decisions.
        weights: [dates, assets].
        sigma: predicted σ of one step, [dates, assets]; NaN where the weight is 0.
    """
    v = np.nan_to_num(sigma) * weights
    if v.shape[1] == 1:
        return np.abs(v[:, 0])
    every = np.unique(np.concatenate([table.ds for table in data.tables]))
    returns = np.zeros((len(every), v.shape[1]))
    for number, table in enumerate(data.tables):
        returns[np.searchsorted(every, table.ds[1:]), number] = np.diff(table.log_close)
    found = np.empty(len(grid))
    for date, end in enumerate(np.searchsorted(every, grid, "right")):
        window = returns[max(end - MEMORY, 0) : end]
        size = np.sqrt((window**2).mean(axis=0))
        still = size == 0
        moves = window @ (v[date] / np.where(still, 1.0, size))
        found[date] = np.sqrt((moves**2).mean() + (v[date, still] ** 2).sum())
    return found
