"""What a forecast would have earned: positions known at the close of t, taken at the close of t + lag, at a cost.

The label is close[t + lag + 1] / close[t + lag]: a position decided with the close of t cannot be had at that close.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from blockyard.errors import InputError
from blockyard.tasks.price.baselines import Forecast
from blockyard.tasks.price.data.rhythm import steps_per_year
from blockyard.tasks.price.data.windows import PriceTables
from blockyard.tasks.price.scores import block_length, estimate

Rule = Literal["sign", "volatility"]
# Long positions that are scaled by predicted volatility are bounded by this factor of capital.
MOST_LEVERAGE = 2.0


@dataclass(frozen=True)
class BacktestConfig:
    """How forecasts become positions.

    Args:
        lag: steps from the forecast's close to the close at which the position is taken.
        cost: paid per unit of position changed, as a fraction of price (0.0005 = 5 basis points).
        steps_per_year: for annual figures; none means as many as the series has (252 for weekdays).
        horizon: the forecast that decides, in steps; one that the model has.
        rule: `sign` holds +1 or −1 by the forecast's sign; `volatility` is long, less when the predicted interval is
            wide (so that the position's own volatility stays even), and asks nothing of direction.
    """

    lag: int = 1
    cost: float = 0.0005
    steps_per_year: int | None = None
    horizon: int = 1
    rule: Rule = "sign"

    def __post_init__(self) -> None:
        if self.lag < 0:
            raise InputError(
                f"lag={self.lag} should be at least 0; 0 trades at the very close that it was decided with"
            )
        if not 0 <= self.cost < 1:
            raise InputError(f"cost={self.cost} should be a fraction of price, at least 0 and below 1")
        if self.steps_per_year is not None and self.steps_per_year < 1:
            raise InputError(f"steps_per_year={self.steps_per_year} should be at least 1")
        if self.rule not in ("sign", "volatility"):
            raise InputError(f"rule={self.rule!r} is not one of: sign, volatility")


def check_horizon(config: BacktestConfig, horizons: tuple[int, ...]) -> None:
    """Refuse a horizon that is not forecast."""
    if config.horizon not in horizons:
        raise InputError(f"horizon={config.horizon} is not forecast; these are: {', '.join(map(str, horizons))}")


def positions(forecast: Forecast, column: int, rule: Rule, levels: tuple[float, ...]) -> np.ndarray | None:
    """Position decided at each origin, [N]; None when the forecast lacks what the rule needs."""
    if rule == "sign":
        return np.sign(forecast.point[:, column])
    if forecast.quantiles is None or len(levels) < 2:
        return None
    width = forecast.quantiles[:, column, -1] - forecast.quantiles[:, column, 0]
    # The usual width is the median of those seen so far, not of the whole span: that would look ahead.
    usual = np.array([np.median(width[: i + 1]) for i in range(len(width))])
    return np.clip(usual / np.maximum(width, 1e-12), 0.0, MOST_LEVERAGE)


def run_backtest(
    data: PriceTables,
    assets: np.ndarray,
    rows: np.ndarray,
    forecast: Forecast,
    config: BacktestConfig,
    levels: tuple[float, ...],
) -> dict[str, Any] | None:
    """Earnings of one forecast, all assets held in equal parts.

    Returns: annual return and volatility, Sharpe ratio with its interval, largest drawdown, turnover per year, costs
        per year, the steps of a year, and the cumulated log return by date; None when the forecast cannot be traded by
        the rule.

    Raises:
        InputError: for a horizon that is not forecast, or too few rows.
    """  # fmt: skip
    check_horizon(config, data.horizons)
    column = data.horizons.index(config.horizon)
    per_date: dict[Any, list[tuple[float, float]]] = {}
    for number, table in enumerate(data.tables):
        mine = assets == number
        held = positions(Forecast(forecast.name, forecast.point[mine], None if forecast.quantiles is None
                                  else forecast.quantiles[mine]), column, config.rule, levels)  # fmt: skip
        if held is None:
            return None
        start = rows[mine] + config.lag
        inside = start + 1 < len(table)
        held, start = held[inside], start[inside]
        move = np.expm1(table.log_close[start + 1] - table.log_close[start])
        changed = np.abs(np.diff(held, prepend=0.0))
        for ds, gain, change in zip(table.ds[start + 1], held * move - config.cost * changed, changed):
            per_date.setdefault(ds, []).append((float(gain), float(change)))
    dates = sorted(per_date)
    if len(dates) < 20:
        raise InputError(f"a backtest over {len(dates)} steps says nothing; give at least 20")
    gains = np.array([[np.mean([g for g, _ in per_date[d]]), np.mean([c for _, c in per_date[d]])] for d in dates])
    year = config.steps_per_year or int(np.median([steps_per_year(table.ds) for table in data.tables]))
    return _summary(gains[:, 0], gains[:, 1], dates, year, config.cost)


def _summary(gains: np.ndarray, changed: np.ndarray, dates: list[Any], year: int, cost: float) -> dict[str, Any]:
    logs = np.log1p(np.maximum(gains, -0.999999))
    curve = np.cumsum(logs)
    peak = np.maximum.accumulate(np.concatenate([[0.0], curve]))[1:]

    def sharpe(m: np.ndarray) -> np.ndarray:
        spread = np.sqrt(np.maximum(m[..., 1] - m[..., 0] ** 2, 1e-18))
        return m[..., 0] / spread * np.sqrt(year)

    ratio = estimate(np.stack([gains, gains**2], axis=1), sharpe, block=block_length(len(gains), 10))
    return {
        "steps": len(gains),
        "steps_per_year": year,
        "annual_return": float(np.expm1(logs.mean() * year)),
        "annual_volatility": float(gains.std() * np.sqrt(year)),
        "sharpe": ratio.to_dict(),
        "max_drawdown": float(np.expm1((curve - peak).min())),
        "turnover": float(changed.mean() * year),
        "costs": float(changed.mean() * year * cost),
        "ds": [str(d)[:19] for d in dates],
        "curve": [round(float(v), 6) for v in curve],
    }


def backtest_table(results: dict[str, dict[str, Any] | None]) -> str:
    """One line per forecast."""
    width = max(len(name) for name in results)
    heads = (
        ("return/y", 10),
        ("vol/y", 8),
        ("Sharpe [95 %]", 24),
        ("drawdown", 10),
        ("turnover/y", 12),
        ("costs/y", 9),
    )
    lines = [" " * width + "".join(f"{head:>{room}}" for head, room in heads)]
    for name, found in results.items():
        if found is None:
            lines.append(f"{name:<{width}}  –")
            continue
        s = found["sharpe"]
        ratio = f"{s['value']:.2f} [{s['low']:+.2f}, {s['high']:+.2f}]"
        lines.append(
            f"{name:<{width}}{found['annual_return']:>10.1%}{found['annual_volatility']:>8.1%}{ratio:>24}"
            f"{found['max_drawdown']:>10.1%}{found['turnover']:>12.1f}{found['costs']:>9.2%}"
        )
    return "\n".join(lines)
