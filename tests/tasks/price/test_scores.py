"""Scores, intervals, baselines, calibration and backtests, against slow definitions and other packages."""

import importlib
import math

import numpy as np
import pytest

from blockyard.errors import InputError
from blockyard.tasks.price.backtest import BacktestConfig, backtest_table, positions, run_backtest
from blockyard.tasks.price.baselines import BASELINES, Forecast, run_baselines
from blockyard.tasks.price.calibrate import Calibration, chosen, fit_calibration
from blockyard.tasks.price.data.config import PriceDataConfig
from blockyard.tasks.price.data.leakage import perturb_futures
from blockyard.tasks.price.data.windows import PriceData
from blockyard.tasks.price.evaluate import evaluate, outcome_of
from blockyard.tasks.price.scores import (
    block_length,
    correlation,
    covered,
    crps,
    estimate,
    hits,
    moments,
    pinball_loss,
    ranks,
)
from blockyard.tasks.price.summary import evaluation_table
from tests.fixtures.prices import price_data

LEVELS = (0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975)


@pytest.fixture(scope="module")
def data():
    return price_data(500, 2)


@pytest.fixture(scope="module")
def beside(data):
    assets, rows = data.origins("test")
    found, notes = run_baselines(data, LEVELS, assets=assets, rows=rows, fit_until=data.borders.val_end)
    assert notes == []
    return found


def test_pinball_loss_is_its_definition():
    y, q = np.array([1.0, -2.0]), np.array([[0.0, 2.0], [-3.0, -1.0]])
    slow = [
        np.mean([t * (v - a) if v > a else (1 - t) * (a - v) for t, a in zip((0.1, 0.9), row)]) for v, row in zip(y, q)
    ]
    assert pinball_loss(y, q, (0.1, 0.9)) == pytest.approx(slow)


def test_pinball_loss_agrees_with_scoringrules():
    scoringrules = pytest.importorskip("scoringrules", reason="scoringrules is not installed")
    draw = np.random.default_rng(0)
    y, q = draw.standard_normal(50), np.sort(draw.standard_normal((50, 9)), axis=1)
    each = [scoringrules.quantile_score(y, q[:, k], level) for k, level in enumerate(LEVELS)]
    assert pinball_loss(y, q, LEVELS) == pytest.approx(np.mean(each, axis=0))


def test_crps_from_quantiles_is_near_that_of_the_normal_distribution():
    scipy = importlib.import_module("scipy.stats")
    y = np.linspace(-2, 2, 9)
    quantiles = np.broadcast_to(scipy.norm.ppf(LEVELS), (9, 9))
    exact = y * (2 * scipy.norm.cdf(y) - 1) + 2 * scipy.norm.pdf(y) - 1 / math.sqrt(math.pi)
    assert crps(y, quantiles, LEVELS) == pytest.approx(exact, rel=0.16)
    fine = np.arange(1, 200) / 200
    assert crps(y, np.broadcast_to(scipy.norm.ppf(fine), (9, 199)), fine) == pytest.approx(exact, rel=0.01)


def test_coverage_counts_what_lies_between_the_two_levels():
    y, q = np.array([0.0, 2.0, -1.0]), np.broadcast_to(np.linspace(-1, 1, 9), (3, 9))
    assert covered(y, q, LEVELS, 0.9).tolist() == [1, 0, 0]
    assert covered(y, q, LEVELS, 0.95).tolist() == [1, 0, 1]
    assert covered(y, q, LEVELS, 0.6) is None


def test_ranks_and_correlations_agree_with_scipy():
    scipy = importlib.import_module("scipy.stats")
    draw = np.random.default_rng(1)
    x, y = np.round(draw.standard_normal(80), 1), draw.standard_normal(80)
    assert (ranks(x) + 1 == scipy.rankdata(x)).all()
    assert float(correlation(moments(x, y).mean(axis=0))) == pytest.approx(scipy.pearsonr(x, y).statistic)
    assert float(correlation(moments(ranks(x), ranks(y)).mean(axis=0))) == pytest.approx(
        scipy.spearmanr(x, y).statistic
    )
    assert float(correlation(moments(np.ones(80), y).mean(axis=0))) == 0


def test_a_forecast_without_a_sign_hits_half():
    assert hits(np.array([1.0, -1.0, 1.0]), np.array([2.0, 3.0, 0.0])).tolist() == [1, 0, 0.5]


def test_block_bootstrap_intervals_are_wider_for_dependent_losses_and_about_right_for_independent_ones():
    draw = np.random.default_rng(0)
    noise = draw.standard_normal(1000)
    single = estimate(noise[:, None], lambda m: m[..., 0], block=1)
    assert single.high - single.low == pytest.approx(2 * 1.96 / math.sqrt(1000), rel=0.15)
    assert single.value == pytest.approx(noise.mean())
    smooth = np.convolve(noise, np.ones(20), mode="same")
    naive, block = (estimate(smooth[:, None], lambda m: m[..., 0], block=b) for b in (1, 40))
    assert block.high - block.low > 3 * (naive.high - naive.low)


def test_block_bootstrap_resamples_are_means_of_circular_blocks():
    values = np.random.default_rng(2).standard_normal((30, 2))
    seen = []
    estimate(values, lambda m: seen.append(m) or m[..., 0], block=7, repeats=5, seed=3)
    starts = np.random.default_rng(3).integers(0, 30, (5, 5))
    slow = [values[[(s + i) % 30 for s in row for i in range(7)]].mean(axis=0) for row in starts]
    assert seen[1] == pytest.approx(np.array(slow))


def test_whole_groups_are_drawn_together():
    values = np.repeat(np.arange(10.0), 3)[:, None]
    grouped = estimate(values, lambda m: m[..., 0], block=1, groups=np.repeat(np.arange(10), 3))
    apart = estimate(values, lambda m: m[..., 0], block=1)
    assert grouped.value == apart.value == 4.5
    assert grouped.high - grouped.low > 1.4 * (apart.high - apart.low)
    assert block_length(1000, 1) == 10 and block_length(1000, 30) == 60 and block_length(9, 30) == 3


def test_baselines_forecast_every_origin_with_rising_quantiles(data, beside):
    n = len(data.origins("test")[0])
    assert list(beside) == list(BASELINES)
    for forecast in beside.values():
        assert forecast.point.shape == (n, 3) and forecast.quantiles.shape == (n, 3, 9)
        assert np.isfinite(forecast.quantiles).all() and (np.diff(forecast.quantiles, axis=-1) >= 0).all()


def test_baselines_are_what_their_names_say(data, beside):
    table = data.tables[0]
    assets, rows = data.origins("test")
    mine = assets == 0
    end = int(np.searchsorted(table.ds, data.borders.val_end, "right"))
    r = np.diff(table.log_close)
    assert (beside["random walk"].point == 0).all()
    assert beside["drift"].point[mine][:, 2] == pytest.approx(5 * r[: end - 1].mean())
    five = table.log_close[5:end] - table.log_close[: end - 5]
    assert beside["unconditional"].quantiles[mine][0, 2] == pytest.approx(np.quantile(five, LEVELS))
    # σ of HistVol20 and of EWMA in loops, at one origin.
    t = int(rows[mine][7])
    variance = np.mean(r[:20] ** 2)
    shown = []
    for s in range(t):
        variance = 0.94 * variance + 0.06 * r[s] ** 2
        shown.append(variance)
    ratio = lambda name: float(np.ptp(beside[name].quantiles[mine][7, 0]) / np.ptp(beside[name].quantiles[mine][8, 0]))  # noqa: E731
    assert ratio("HistVol20") == pytest.approx(table.sigma[t] / table.sigma[t + 1])
    after = 0.94 * variance + 0.06 * r[t] ** 2
    assert ratio("EWMA(0.94)") == pytest.approx(math.sqrt(variance / after))


def test_garch_forecasts_are_those_of_arch(data):
    arch = pytest.importorskip("arch", reason="arch is not installed")
    from blockyard.tasks.price.baselines import _past, garch

    past = _past(data, 0, data.borders.val_end, LEVELS)
    r = 100 * past.returns[1:]
    model = arch.arch_model(r, mean="Constant", vol="GARCH", dist="t", rescale=False)
    fitted = model.fit(disp="off", last_obs=past.end - 1)
    start = len(r) - 3
    expected = fitted.forecast(horizon=5, start=start).variance.to_numpy()
    _, quantiles = garch(past)
    widths = np.ptp(quantiles, axis=-1)
    h = np.cumsum(expected, axis=1)[:, [0, 1, 4]]
    # The shape is fixed per horizon, so widths are in proportion to the square root of the summed variance.
    assert widths[-1] / widths[-3] == pytest.approx(np.sqrt(h[-1] / h[-3]), rel=1e-3)


def test_no_baseline_looks_ahead(data, beside):
    """Change everything after a date in the test part: forecasts from origins up to it stay as they were."""
    assets, rows = data.origins("test")
    dates = data.dates(assets, rows)
    middle = np.sort(dates)[len(dates) // 2]
    changed = PriceData(perturb_futures(data.prices, middle), data.config, context=16, horizons=(1, 2, 5))
    after, _ = run_baselines(changed, LEVELS, assets=assets, rows=rows, fit_until=data.borders.val_end)
    for name in BASELINES:
        early = dates <= middle
        assert (after[name].quantiles[early] == beside[name].quantiles[early]).all(), name
        assert (after[name].point[early] == beside[name].point[early]).all(), name


def test_an_unknown_baseline_is_refused(data):
    with pytest.raises(InputError, match=r"no baseline 'GARCH' \(did you mean 'GARCH-t'\?\)"):
        run_baselines(
            data, LEVELS, assets=np.zeros(1, int), rows=np.array([200]), fit_until=data.borders.val_end, names=["GARCH"]
        )


def test_an_oracle_scores_well_and_the_reference_scores_nothing(data, beside):
    assets, rows = data.origins("test")
    outcome = outcome_of(data, assets, rows, LEVELS, data.borders.val_end)
    sharp = outcome.y[..., None] + 1e-4 * np.linspace(-1, 1, 9)
    found = evaluate(outcome, {**beside, "oracle": Forecast("oracle", outcome.y, sharp)}, repeats=100)["forecasts"]
    assert found["unconditional"]["skill"][0]["value"] == 0
    assert found["oracle"]["skill"][0]["value"] > 0.95 and found["oracle"]["crps_skill"][0]["value"] > 0.95
    assert found["oracle"]["ic"][1]["value"] == pytest.approx(1) and found["oracle"]["rank_ic"][1][
        "value"
    ] == pytest.approx(1)
    assert found["oracle"]["rmse_ratio"][0]["value"] == 0 and found["oracle"]["mase_ratio"][2]["value"] == 0
    assert found["oracle"]["hit_minus_up"][0]["value"] == pytest.approx((outcome.y[:, 0] <= 0).mean())
    assert found["random walk"]["ic"][0] is None and found["random walk"]["rmse_ratio"][0]["value"] == 1
    with pytest.raises(InputError, match="lack 'random walk'"):
        evaluate(outcome, {"unconditional": beside["unconditional"]})


def test_many_assets_are_ranked_across_each_date():
    data = price_data(300, 6, horizons=(1,))
    assets, rows = data.origins("test")
    outcome = outcome_of(data, assets, rows, LEVELS, data.borders.val_end)
    found, _ = run_baselines(
        data, LEVELS, assets=assets, rows=rows, fit_until=data.borders.val_end, names=["unconditional", "random walk"]
    )
    shifted = outcome.y + 10 * data.dates(assets, rows).astype(np.int64)[:, None] / 1e18
    scores = evaluate(outcome, {**found, "m": Forecast("m", shifted, None)}, repeats=50)["forecasts"]["m"]
    # A common shift of all assets on a date changes nothing across them.
    assert scores["ic"][0]["value"] == pytest.approx(1) and scores["rank_ic"][0]["value"] == pytest.approx(1)


def test_the_table_shows_every_forecast_with_its_interval(data, beside):
    assets, rows = data.origins("test")
    text = evaluation_table(evaluate(outcome_of(data, assets, rows, LEVELS, data.borders.val_end), beside, repeats=20))
    assert all(name in text for name in BASELINES) and "h = 1" in text and "h = 5" in text
    assert text.count("[") > len(BASELINES)


def test_calibration_meets_its_levels_on_the_rows_it_was_fitted_on():
    draw = np.random.default_rng(0)
    y = 2 * draw.standard_normal((500, 2)) + 0.3
    scipy = importlib.import_module("scipy.stats")
    quantiles = np.broadcast_to(scipy.norm.ppf(LEVELS), (500, 2, 9))
    found = fit_calibration(y, np.zeros((500, 2)), quantiles, LEVELS)
    moved = found.apply(np.zeros((500, 2)), quantiles)
    for k, level in enumerate(LEVELS):
        assert (y <= moved[..., k]).mean(axis=0) == pytest.approx(level, abs=3 / 500)
    assert (np.diff(moved, axis=-1) >= 0).all()


def test_a_point_forecast_gets_quantiles_from_calibration():
    y = np.random.default_rng(0).standard_normal((400, 1))
    found = fit_calibration(y, np.full((400, 1), 0.5), None, LEVELS)
    assert found.apply(np.full((400, 1), 0.5), None)[0, 0] == pytest.approx(np.quantile(y, LEVELS), abs=0.1)


def test_calibration_is_kept_only_where_it_helps(tmp_path):
    scipy = importlib.import_module("scipy.stats")
    y = np.random.default_rng(0).standard_normal((600, 1))
    ds, point = np.arange(600), np.zeros((600, 1))
    narrow = np.broadcast_to(0.5 * scipy.norm.ppf(LEVELS), (600, 1, 9))
    found = chosen(y, point, narrow, LEVELS, ds, (1,))
    assert found is not None and "held-out halves" in found.why
    found.save(tmp_path)
    again = Calibration.load(tmp_path)
    assert (again.shifts == found.shifts).all() and again.levels == LEVELS
    # The same narrow quantiles at a horizon that leaves 600 / 20 = 30 independent outcomes: too few for a tail of 1/40.
    both = chosen(*(np.repeat(v, 2, axis=1) for v in (y, point, narrow)), LEVELS, ds, (1, 20))
    assert np.allclose(both.shifts[0], found.shifts[0]) and (both.shifts[1] == 0).all()
    # Quantiles that changed their bias half-way: each half's shifts harm the other.
    bias = np.where(ds < 300, 0.5, -0.5)[:, None, None]
    assert chosen(y, point, np.broadcast_to(scipy.norm.ppf(LEVELS), (600, 1, 9)) + bias, LEVELS, ds, (1,)) is None
    assert chosen(y[:35], point[:35], narrow[:35], LEVELS, ds[:35], (1,)) is None
    (tmp_path / "calibration.json").write_text("{")
    with pytest.raises(InputError, match=r"calibration.json is damaged"):
        Calibration.load(tmp_path)


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


def test_a_perfect_forecast_earns_and_lag_and_costs_take_from_it(data):
    assets, rows = data.origins("test")
    returns = data.returns(assets, rows)
    perfect = Forecast("p", returns, None)

    def earned(**options):
        return run_backtest(data, assets, rows, perfect, BacktestConfig(**options), LEVELS)["annual_return"]

    assert earned(lag=0, cost=0.0) > earned(lag=0, cost=0.001) > earned(lag=1, cost=0.001)


def test_long_positions_shrink_when_the_interval_widens_and_never_look_ahead():
    width = np.array([1.0, 1.0, 4.0, 1.0])
    quantiles = np.stack([-width, width], axis=-1)[:, None, :]
    held = positions(Forecast("f", np.zeros((4, 1)), quantiles), 0, "volatility", (0.1, 0.9))
    assert held.tolist() == [1.0, 1.0, 0.25, 1.0]
    assert positions(Forecast("f", np.zeros((4, 1)), None), 0, "volatility", (0.1, 0.9)) is None


@pytest.mark.parametrize("options", [{"lag": -1}, {"cost": 1.0}, {"steps_per_year": 0}, {"rule": "luck"}])
def test_backtest_options_out_of_range_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        BacktestConfig(**options)


def test_a_backtest_needs_a_horizon_that_is_forecast(data):
    assets, rows = data.origins("test")
    forecast = Forecast("f", np.ones((len(rows), 3)), None)
    with pytest.raises(InputError, match="horizon=3 is not forecast; these are: 1, 2, 5"):
        run_backtest(data, assets, rows, forecast, BacktestConfig(horizon=3), LEVELS)
    assert PriceDataConfig().embargo == 5
