"""Weights: each rule, target and limit against its definition in loops, closed markets too; nothing looks ahead."""

import math
from dataclasses import replace
from statistics import NormalDist, median

import numpy as np
import pytest

from blockyard.errors import InputError
from blockyard.tasks.price.backtest import account, run_backtest, weights_table
from blockyard.tasks.price.baselines import Forecast, run_baselines
from blockyard.tasks.price.data.leakage import perturb_futures
from blockyard.tasks.price.data.table import BARS, Asset, Prices
from blockyard.tasks.price.data.windows import PriceData
from blockyard.tasks.price.forecaster import Forecaster
from blockyard.tasks.price.positions import BacktestConfig, decide, limited, ranked
from tests.fixtures.price_models import started
from tests.fixtures.prices import LEVELS, price_data, prices

CONFIGS = {
    "sign": BacktestConfig(),
    "volatility": BacktestConfig(rule="volatility", horizon=5),
    "rank": BacktestConfig(rule="rank", tails=0.4, horizon=2),
    "target": BacktestConfig(rule="sign", target_volatility=0.1, horizon=2),
    "limits": BacktestConfig(rule="volatility", target_volatility=0.3, gross=0.9, net=0.4),
    "rank, target, net": BacktestConfig(rule="rank", tails=0.5, target_volatility=0.2, net=0.0),
}


def closed(prices: Prices) -> Prices:
    """The last asset's market closed on every seventh date, and for eight dates in a row; the first begins later."""
    late, *rest = prices.assets
    n = len(late)
    open_rows = np.flatnonzero((np.arange(n) % 7 != 3) & ~((np.arange(n) > n - 60) & (np.arange(n) < n - 51)))
    last = rest[-1]
    return replace(prices, assets=(only(late, np.arange(30, n)), *rest[:-1], only(last, open_rows)))


def only(asset: Asset, rows: np.ndarray) -> Asset:
    return replace(asset, **{name: getattr(asset, name)[rows] for name in ("ds", "close", *BARS, "volume")})


@pytest.fixture(scope="module")
def panel():
    """Five assets, two of them on calendars of their own."""
    made = price_data(300, 5)
    return PriceData(closed(prices(300, 5)), made.config, context=16, horizons=(1, 2, 5))


def forecast_of(panel, assets, rows) -> Forecast:
    """The untrained model's, whose points and widths depend on everything."""
    return Forecaster(started(panel), None, "model").forecast(panel, assets, rows)


def slow(panel, assets, rows, forecast, config, year=252):
    """Weights by origin: loops over dates and assets, from their definitions."""
    horizon = panel.horizons.index(config.horizon)
    score_span = NormalDist().inv_cdf(LEVELS[-1]) - NormalDist().inv_cdf(LEVELS[0])
    told = {}
    for i, (a, t) in enumerate(zip(assets, rows)):
        width = float(forecast.quantiles[i, horizon, -1] - forecast.quantiles[i, horizon, 0])
        told[int(a), panel.tables[a].ds[t]] = (float(forecast.point[i, horizon]), width)
    dates = sorted({date for _, date in told})
    every = sorted({d for table in panel.tables for d in table.ds})
    returns = [
        {d: float(table.log_close[i + 1] - table.log_close[i]) for i, d in enumerate(table.ds[1:])}
        for table in panel.tables
    ]
    weights, widths, usual = {}, {a: [] for a in range(len(panel.tables))}, {}
    for number, date in enumerate(dates):
        now = {}
        for a in range(len(panel.tables)):
            if (a, date) in told:
                widths[a].append(told[a, date][1])
                usual[a, date] = median(widths[a])
            # The last forecast, unless it is older than five dates.
            for back in dates[max(number - 5, 0) : number + 1][::-1]:
                if (a, back) in told:
                    now[a] = (*told[a, back], usual[a, back])
                    break
        if config.rule == "sign":
            held = {a: math.copysign(1, point) / len(now) for a, (point, _, _) in now.items()}
        elif config.rule == "volatility":
            held = {a: min(typical / width, 2.0) / len(now) for a, (_, width, typical) in now.items()}
        else:
            order = sorted(now, key=lambda a: now[a][0] / now[a][1])
            k = max(1, int(len(order) * config.tails))
            held = {a: 0.5 / k * ((i >= len(order) - k) - (i < k)) for i, a in enumerate(order)}
        if config.target_volatility is not None:
            window = [d for d in every if d <= date][-250:]
            v = {a: held[a] * now[a][1] / score_span / math.sqrt(config.horizon) for a in now}
            rms = {a: math.sqrt(sum(returns[a].get(d, 0.0) ** 2 for d in window) / len(window)) for a in now}
            moves = [sum(v[a] * returns[a].get(d, 0.0) / rms[a] for a in now) for d in window]
            sigma = math.sqrt(sum(m * m for m in moves) / len(window)) * math.sqrt(year)
            held = {a: w * config.target_volatility / sigma for a, w in held.items()}
        gross = sum(abs(w) for w in held.values())
        held = {a: w * min(1.0, config.gross / gross) for a, w in held.items()}
        if config.net is not None:
            longs = sum(w for w in held.values() if w > 0)
            shorts = -sum(w for w in held.values() if w < 0)
            down = {1: min(1.0, (shorts + config.net) / longs) if longs else 1.0,
                    -1: min(1.0, (longs + config.net) / shorts) if shorts else 1.0}  # fmt: skip
            held = {a: w * down[1 if w > 0 else -1] for a, w in held.items()}
        for a in held:
            if (a, date) in told:
                weights[a, date] = held[a]
    return weights


@pytest.mark.parametrize("case", CONFIGS)
def test_weights_are_their_definition_in_loops(panel, case):
    config = replace(CONFIGS[case], steps_per_year=252)
    assets, rows = panel.origins("test")
    forecast = forecast_of(panel, assets, rows)
    found = decide(panel, assets, rows, forecast, config, LEVELS)
    expected = slow(panel, assets, rows, forecast, config)
    dates = panel.dates(assets, rows)
    assert found == pytest.approx([expected[int(a), d] for a, d in zip(assets, dates)], rel=1e-6, abs=1e-9)
    assert np.ptp(found) > 0


@pytest.mark.parametrize("case", CONFIGS)
def test_accounts_are_their_definition_in_loops(panel, case):
    """Every asset's own rows in turn: taken lag rows later, paid for, earned over the row after."""
    config = CONFIGS[case]
    assets, rows = panel.origins("test")
    weights = decide(panel, assets, rows, forecast_of(panel, assets, rows), config, LEVELS)
    for lag in (0, 1, 3):
        course = account(panel, assets, rows, weights, lag=lag, cost=0.002)
        booked, traded, sizes = {}, {}, {}
        for a, table in enumerate(panel.tables):
            before = 0.0
            for w, t in zip(weights[assets == a], rows[assets == a]):
                if t + lag + 1 < len(table):
                    date = table.ds[t + lag + 1]
                    gain = w * math.expm1(table.log_close[t + lag + 1] - table.log_close[t + lag])
                    booked[date] = booked.get(date, 0.0) + gain - 0.002 * abs(w - before)
                    traded[date] = traded.get(date, 0.0) + abs(w - before)
                    sizes[date] = sizes.get(date, 0.0) + abs(w)
                    before = w
        assert course.ds.tolist() == sorted(np.array(list(booked)).tolist())
        for found, slowly in ((course.gains, booked), (course.changed, traded), (course.gross, sizes)):
            assert found == pytest.approx([slowly[d] for d in sorted(slowly)], abs=1e-12)


@pytest.mark.parametrize("case", CONFIGS)
def test_changing_the_future_changes_no_earlier_weight(panel, case):
    """Forecasts are made anew on the changed prices, of the model and of a baseline; weights stay bit for bit."""
    config = CONFIGS[case]
    assets, rows = panel.origins("test")
    dates = panel.dates(assets, rows)
    middle = np.sort(dates)[len(dates) // 2]
    changed = PriceData(perturb_futures(panel.prices, middle), panel.config, context=16, horizons=(1, 2, 5))
    model = Forecaster(started(panel), None, "model")
    until = panel.borders.val_end
    early, both = dates <= middle, []
    for data in (panel, changed):
        beside, _ = run_baselines(data, LEVELS, assets=assets, rows=rows, fit_until=until, names=["ridge"])
        forecasts = (model.forecast(data, assets, rows), beside["ridge"])
        both.append([decide(data, assets, rows, one, config, LEVELS) for one in forecasts])
    for before, after in zip(*both):
        assert (before[early] == after[early]).all()
        assert (before[~early] != after[~early]).any()


def test_a_rank_of_equals_holds_nothing_and_ties_share():
    score = np.array([[1.0, 1, 1, 1], [4, 3, 2, 1], [2, 2, 1, 0], [np.nan, np.nan, 1, 0], [np.nan, np.nan, 1, np.nan]])
    found = ranked(score, 0.25)
    assert found[0].tolist() == [0, 0, 0, 0]
    assert found[1].tolist() == [0.5, 0, 0, -0.5]
    assert found[2].tolist() == [0.25, 0.25, 0, -0.5]
    assert found[3].tolist() == [0, 0, 0.5, -0.5]
    assert found[4].tolist() == [0, 0, 0, 0]
    assert ranked(np.arange(10.0)[None], 0.3)[0, [0, 2, 3, 6, 7]].tolist() == pytest.approx(
        [-1 / 6] * 2 + [0, 0, 1 / 6]
    )


def test_limits_scale_down_and_never_up():
    weights = np.array([[1.0, 0.5, -0.3], [0.2, 0.1, -0.1], [-1.0, -0.5, 0.0]])
    held = limited(weights, 0.9, None)
    assert np.abs(held).sum(axis=1) == pytest.approx([0.9, 0.4, 0.9])
    assert held[0] == pytest.approx(weights[0] / 2)
    held = limited(weights, 9.0, 0.1)
    assert held.sum(axis=1) == pytest.approx([0.1, 0.1, -0.1])
    assert (np.abs(held) <= np.abs(weights) + 1e-15).all() and held[0, 2] == -0.3
    assert limited(weights, 9.0, 0.0)[2].tolist() == [0, 0, 0]


def test_one_asset_has_the_target_s_volatility_by_its_own_forecast(panel):
    """Weight times the predicted σ of a step is the target ÷ √year."""
    data = price_data(300)
    assets, rows = data.origins("test")
    forecast = forecast_of(data, assets, rows)
    config = BacktestConfig(rule="volatility", target_volatility=0.08, horizon=2, gross=50.0)
    found = decide(data, assets, rows, forecast, config, LEVELS)
    sigma = np.ptp(forecast.quantiles[:, 1], axis=-1) / (2 * 1.959964) / math.sqrt(2)
    assert found * sigma * math.sqrt(252) == pytest.approx(np.full(len(rows), 0.08), rel=1e-5)
    bound = decide(data, assets, rows, forecast, replace(config, gross=0.2), LEVELS)
    assert bound == pytest.approx(np.minimum(found, 0.2))


def test_long_positions_shrink_when_the_interval_widens():
    data = price_data(300)
    assets, rows = (part[:4] for part in data.origins("test"))
    width = np.array([1.0, 1.0, 4.0, 1.0])
    quantiles = np.stack([-width, width], axis=-1)[:, None, :].repeat(3, axis=1)
    config = BacktestConfig(rule="volatility")
    held = decide(data, assets, rows, Forecast("f", np.zeros((4, 3)), quantiles), config, (0.1, 0.9))
    assert held.tolist() == [1.0, 1.0, 0.25, 1.0]


def test_what_needs_a_width_or_several_assets_is_not_made_up(panel):
    assets, rows = panel.origins("test")
    points = Forecast("f", np.ones((len(rows), 3)), None)
    for config in (CONFIGS["volatility"], CONFIGS["rank"], CONFIGS["target"]):
        assert decide(panel, assets, rows, points, config, LEVELS) is None
        assert run_backtest(panel, assets, rows, points, config, LEVELS) is None
    assert decide(panel, assets, rows, points, CONFIGS["sign"], LEVELS).min() > 0
    alone = price_data(300)
    assets, rows = alone.origins("test")
    with pytest.raises(InputError, match="rule=rank orders assets, and simulated has one; give several"):
        decide(alone, assets, rows, Forecast("f", np.ones((len(rows), 3)), None), CONFIGS["rank"], LEVELS)


def test_weights_have_the_dates_on_which_they_were_decided_and_taken(panel):
    assets, rows = panel.origins("test")
    frame = weights_table(panel, assets, rows, np.arange(len(rows), dtype=float), lag=1)
    assert list(frame.columns) == ["unique_id", "decided", "taken", "weight"] and len(frame) == len(rows)
    mine = frame[frame["unique_id"] == "E"]
    ds = panel.tables[4].ds
    assert mine["taken"].to_numpy()[0] == ds[np.searchsorted(ds, mine["decided"].to_numpy()[0]) + 1]
    assert (mine["decided"] < mine["taken"]).all()
