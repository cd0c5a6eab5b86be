"""What a forecast would have earned: weights decided at one close, taken at a later one, at a cost.

The label is close[t + lag + 1] / close[t + lag]: a weight decided with the close of t cannot be had at that close.
Steps are each asset's own rows. Costs are paid for every change of a weight; that weights drift between two decisions
is not counted.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from blockyard.errors import InputError, require
from blockyard.tasks.price.baselines import Forecast
from blockyard.tasks.price.data.windows import PriceTables
from blockyard.tasks.price.earnings import Course, describe, ic_over_time
from blockyard.tasks.price.positions import BacktestConfig as BacktestConfig
from blockyard.tasks.price.positions import Panel, decide, equal_parts, year_of

# Steps below which nothing can be said.
LEAST = 20
HOLD = "buy and hold"


def account(
    data: PriceTables, assets: np.ndarray, rows: np.ndarray, weights: np.ndarray, *, lag: int, cost: float
) -> Course:
    """Return book what weights earn and cost.

    Args:
        data: the assets.
        assets: asset number of each origin.
        rows: row of each origin.
        weights: decided at each origin, [N].
        lag: rows from the decision to the close at which it is taken.
        cost: per unit of weight changed.

    Raises:
        InputError: when fewer than 20 dates are left.
    """
    order = np.lexsort((rows, assets))
    assets, rows, weights = assets[order], rows[order], weights[order]
    lengths = np.array([len(table) for table in data.tables])
    starts = np.concatenate([[0], np.cumsum(lengths)])[:-1]
    log_close, ds = (np.concatenate([getattr(t, part) for t in data.tables]) for part in ("log_close", "ds"))
    before = np.concatenate([[0.0], weights[:-1]])
    before[np.concatenate([[True], assets[1:] != assets[:-1]])] = 0.0
    # What would be earned beyond the last row is not known.
    inside = rows + lag + 1 < lengths[assets]
    taken = (starts[assets] + rows + lag)[inside]
    held, changed = weights[inside], np.abs(weights - before)[inside]
    gains = held * np.expm1(log_close[taken + 1] - log_close[taken]) - cost * changed
    dates, place = np.unique(ds[taken + 1], return_inverse=True)
    if len(dates) < LEAST:
        raise InputError(f"a backtest over {len(dates)} steps says nothing; give at least {LEAST}")
    sums = (np.bincount(place, weights=values, minlength=len(dates)) for values in (gains, changed, np.abs(held), held))
    return Course(ds[taken].min(), dates, *sums)


def hold(data: PriceTables, assets: np.ndarray, rows: np.ndarray, config: BacktestConfig) -> Course:
    """Return equal long positions in all assets, from the same origins, at the same lag and cost."""
    panel = Panel.of(data, assets, rows)
    weights = equal_parts(panel.carry(panel.as_table(np.ones(len(rows)))))
    return account(data, assets, rows, panel.at(weights), lag=config.lag, cost=config.cost)


def run_backtest(
    data: PriceTables,
    assets: np.ndarray,
    rows: np.ndarray,
    forecast: Forecast,
    config: BacktestConfig,
    levels: tuple[float, ...],
) -> dict[str, Any] | None:
    """Return the earnings of one forecast.

    Args:
        data: the assets.
        assets: asset number of each origin.
        rows: row of each origin.
        forecast: log returns from the origins.
        config: how they become positions.
        levels: of the forecast's quantiles.

    Returns: what `describe` says, with the forecast's IC over time ("ic"); None when the forecast cannot be traded by
        the rule.

    Raises:
        InputError: for a horizon that is not forecast, one asset where the rule ranks, or too few rows.
    """
    weights = decide(data, assets, rows, forecast, config, levels)
    if weights is None:
        return None
    course = account(data, assets, rows, weights, lag=config.lag, cost=config.cost)
    found = describe(course, year_of(data, config), config.cost, beside=hold(data, assets, rows, config))
    column = data.horizons.index(config.horizon)
    happened = data.returns(assets, rows)[:, column]
    found["ic"] = ic_over_time(data.dates(assets, rows), forecast.point[:, column], happened)
    return found


def run_hold(data: PriceTables, assets: np.ndarray, rows: np.ndarray, config: BacktestConfig) -> dict[str, Any]:
    """Return the earnings of equal long positions in all assets, as `describe` says them."""
    return describe(hold(data, assets, rows, config), year_of(data, config), config.cost)


def weights_table(data: PriceTables, assets: np.ndarray, rows: np.ndarray, weights: np.ndarray, lag: int) -> Any:
    """Return every weight with its dates, as a pandas frame: unique_id, decided, taken (empty beyond the last row),
    weight."""
    pandas = require("pandas", extra="prices")
    taken = []
    for asset, row in zip(assets, rows):
        ds = data.tables[asset].ds
        taken.append(ds[row + lag] if row + lag < len(ds) else None)
    names = [data.tables[asset].unique_id for asset in assets]
    columns = {"unique_id": names, "decided": data.dates(assets, rows), "taken": taken, "weight": weights}
    return pandas.DataFrame(columns)


def backtest_table(results: dict[str, dict[str, Any] | None]) -> str:
    """Return one line per forecast."""
    width = max(len(name) for name in results)
    heads = (
        ("return/y", 10),
        ("vol/y", 8),
        ("Sharpe [95 %]", 24),
        ("− hold [95 %]", 24),
        ("Sortino", 9),
        ("Calmar", 8),
        ("drawdown", 10),
        ("turnover/y", 12),
        ("costs/y", 9),
    )
    lines = [" " * width + "".join(f"{head:>{room}}" for head, room in heads)]
    for name, found in results.items():
        if found is None:
            lines.append(f"{name:<{width}}  –")
            continue
        beside = found.get("sharpe_minus_hold")
        lines.append(
            f"{name:<{width}}{found['annual_return']:>10.1%}{found['annual_volatility']:>8.1%}"
            f"{_interval(found['sharpe']):>24}{_interval(beside, '+'):>24}{_ratio(found.get('sortino')):>9}"
            f"{_ratio(found.get('calmar')):>8}{found['max_drawdown']:>10.1%}{found['turnover']:>12.1f}"
            f"{found['costs']:>9.2%}"
        )
    return "\n".join(lines)


def _interval(found: dict[str, float] | None, sign: str = "") -> str:
    if found is None:
        return "–"
    return f"{found['value']:{sign}.2f} [{found['low']:+.2f}, {found['high']:+.2f}]"


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
