"""Backtests against their definition in loops: lag, costs, positions, nothing from the future."""

import math

import numpy as np
import pytest

from blockyard.errors import InputError
from blockyard.tasks.price.backtest import BacktestConfig, account, backtest_table, run_backtest, run_hold
from blockyard.tasks.price.baselines import Forecast
from blockyard.tasks.price.data.config import PriceDataConfig
from tests.fixtures.prices import LEVELS


def test_a_backtest_is_its_definition_in_loops(data):
    assets, rows = data.origins("test")
    draw = np.random.default_rng(0)
    forecast = Forecast("f", draw.standard_normal((len(rows), 3)), None)
    config = BacktestConfig(lag=1, cost=0.001)
    found = run_backtest(data, assets, rows, forecast, config, LEVELS)
    by_date = {}
    for a in (0, 1):
        before, close = 0.0, np.exp(data.tables[a].log_close)
        for point, t in zip(forecast.point[assets == a, 0], rows[assets == a]):
            if t + 2 < len(close):
                held = math.copysign(1, point)
                gain = held * (close[t + 2] / close[t + 1] - 1) - 0.001 * abs(held - before)
                by_date.setdefault(data.tables[a].ds[t + 2], []).append(gain)
                before = held
    logs = [math.log1p(np.mean(by_date[d])) for d in sorted(by_date)]
    assert found["curve"][-1] == pytest.approx(sum(logs), abs=1e-5)
    assert found["annual_return"] == pytest.approx(math.expm1(np.mean(logs) * 252))
    assert "f" in backtest_table({"f": found, "none": None})
    assert found["steps_per_year"] == 252
    doubled = run_backtest(data, assets, rows, forecast, BacktestConfig(lag=1, cost=0.001, steps_per_year=504), LEVELS)
    assert doubled["annual_volatility"] == pytest.approx(found["annual_volatility"] * math.sqrt(2))


def test_a_perfect_forecast_earns_and_lag_and_costs_take_from_it(data):
    assets, rows = data.origins("test")
    returns = data.returns(assets, rows)
    perfect = Forecast("p", returns, None)

    def earned(**options):
        return run_backtest(data, assets, rows, perfect, BacktestConfig(**options), LEVELS)["annual_return"]

    assert earned(lag=0, cost=0.0) > earned(lag=0, cost=0.001) > earned(lag=1, cost=0.001)


def test_buy_and_hold_is_what_the_prices_did(data):
    assets, rows = data.origins("test")
    found = run_hold(data, assets, rows, BacktestConfig(cost=0.0))
    logs = []
    for t in rows[assets == 0]:
        if t + 2 < len(data.tables[0]):
            moves = [math.expm1(table.log_close[t + 2] - table.log_close[t + 1]) for table in data.tables]
            logs.append(math.log1p(sum(moves) / 2))
    assert found["curve"][-1] == pytest.approx(sum(logs), abs=1e-5) and found["gross"] == found["net"] == 1
    up = Forecast("up", np.ones((len(rows), 3)), None)
    same = run_backtest(data, assets, rows, up, BacktestConfig(cost=0.0), LEVELS)
    assert same["curve"] == found["curve"] and same["sharpe_minus_hold"] == {"value": 0, "low": 0, "high": 0}


def test_the_order_of_origins_does_not_matter(data):
    assets, rows = data.origins("test")
    weights = np.random.default_rng(0).standard_normal(len(rows))
    mixed = np.random.default_rng(1).permutation(len(rows))
    one = account(data, assets, rows, weights, lag=1, cost=0.001)
    other = account(data, assets[mixed], rows[mixed], weights[mixed], lag=1, cost=0.001)
    assert (one.gains == other.gains).all() and (one.changed == other.changed).all()
    with pytest.raises(InputError, match="over 5 steps says nothing; give at least 20"):
        account(data, assets[:5], rows[:5], weights[:5], lag=1, cost=0.0)


@pytest.mark.parametrize("options", [
    {"lag": -1}, {"cost": 1.0}, {"steps_per_year": 0}, {"rule": "luck"}, {"tails": 0.0}, {"tails": 0.6},
    {"target_volatility": 0.0}, {"target_volatility": math.inf}, {"gross": 0.0}, {"gross": math.nan}, {"net": -0.1},
])  # fmt: skip
def test_backtest_options_out_of_range_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        BacktestConfig(**options)


def test_a_backtest_needs_a_horizon_that_is_forecast(data):
    assets, rows = data.origins("test")
    forecast = Forecast("f", np.ones((len(rows), 3)), None)
    with pytest.raises(InputError, match="horizon=3 is not forecast; these are: 1, 2, 5"):
        run_backtest(data, assets, rows, forecast, BacktestConfig(horizon=3), LEVELS)
    assert PriceDataConfig().embargo == 5
