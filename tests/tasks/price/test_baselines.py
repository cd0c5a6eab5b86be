"""Baselines: what their names say, by `arch` itself for GARCH, and never from the future."""

import importlib.util
import math
from dataclasses import replace

import numpy as np
import pytest

from blockyard.errors import InputError
from blockyard.tasks.price.baselines import AUTOMATIC, BASELINES, _past, run_baselines
from blockyard.tasks.price.data.leakage import perturb_futures
from blockyard.tasks.price.data.windows import PriceData
from tests.fixtures.prices import LEVELS


def test_baselines_forecast_every_origin_with_rising_quantiles(data, beside):
    n = len(data.origins("test")[0])
    # Those of statsforecast run where it is installed.
    assert [n for n in beside if n not in AUTOMATIC] == [n for n in BASELINES if n not in AUTOMATIC]
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


@pytest.mark.parametrize(("baseline", "leverage"), [("GARCH-t", 0), ("GJR-GARCH-t", 1)])
def test_garch_forecasts_are_those_of_arch(data, baseline, leverage):
    arch = pytest.importorskip("arch", reason="arch is not installed")
    past = _past(data, 0, data.borders.val_end, LEVELS, np.arange(0))
    r = 100 * past.returns[1:]
    model = arch.arch_model(r, mean="Constant", vol="GARCH", o=leverage, dist="t", rescale=False)
    fitted = model.fit(disp="off", last_obs=past.end - 1)
    start = len(r) - 3
    expected = fitted.forecast(horizon=5, start=start).variance.to_numpy()
    _, quantiles = BASELINES[baseline](past)
    widths = np.ptp(quantiles, axis=-1)
    h = np.cumsum(expected, axis=1)[:, [0, 1, 4]]
    # The shape is fixed per horizon, so widths are in proportion to the square root of the summed variance.
    assert widths[-1] / widths[-3] == pytest.approx(np.sqrt(h[-1] / h[-3]), rel=1e-3)
    if leverage:
        assert abs(fitted.params["gamma[1]"]) > 1e-3


def test_har_is_its_definition_in_loops(data):
    """Least squares by the normal equations over plain lists, at two origins."""
    past = _past(data, 0, data.borders.val_end, LEVELS, np.arange(0))
    r = [float(v) for v in past.returns]

    def volatility(first, last):
        return math.sqrt(sum(v * v for v in r[first : last + 1]) / (last + 1 - first))

    def row(t):
        return [1.0, volatility(t, t), volatility(t - 4, t), volatility(t - 21, t)]

    _, quantiles = BASELINES["HAR"](past)
    width = np.ptp(quantiles, axis=-1)
    for column, h in enumerate(past.horizons):
        origins = range(22, past.end - h)
        x = np.array([row(t) for t in origins])
        weights = np.linalg.solve(x.T @ x, x.T @ np.array([volatility(t + 1, t + h) for t in origins]))
        a, b = len(r) - 1, len(r) - 40
        expected = float(np.dot(weights, row(a)) / np.dot(weights, row(b)))
        assert width[a, column] / width[b, column] == pytest.approx(expected, rel=1e-9)


def test_har_is_never_below_a_tenth_of_the_usual_volatility(data):
    past = _past(data, 0, data.borders.val_end, LEVELS, np.arange(0))
    _, quantiles = BASELINES["HAR"](past)
    assert (np.ptp(quantiles[22:], axis=-1) > 0).all()
    few = replace(past, end=60)
    with pytest.raises(InputError, match="HAR has 37 complete rows before the border at horizon 1; 50 are needed"):
        BASELINES["HAR"](few)


@pytest.mark.parametrize("name", AUTOMATIC)
def test_automatic_baselines_are_those_of_statsforecast(data, name):
    models = pytest.importorskip("statsforecast.models", reason="statsforecast is not installed (extra: baselines)")
    wanted = np.array([len(data.tables[1]) - 30, len(data.tables[1]) - 7])
    past = _past(data, 1, data.borders.val_end, LEVELS, wanted)
    point, quantiles = BASELINES[name](past)
    options = {"model": "AZZ"} if name == "AutoETS" else {}
    model = getattr(models, name)(season_length=1, **options).fit(past.log_close[: past.end])
    for row in wanted:
        expected = model.forward(past.log_close[: row + 1], h=5, level=[50, 95])
        mean = expected["mean"][[0, 1, 4]]
        assert past.log_close[row] + point[row] == pytest.approx(mean)
        for level, k in (("lo-95", 0), ("lo-50", 3), ("hi-50", 5), ("hi-95", 8)):
            edge = np.asarray(expected[level])[[0, 1, 4]]
            assert past.log_close[row] + quantiles[row, :, k] == pytest.approx(edge, abs=1e-6)
    assert np.isnan(point[: wanted[0]]).all()


def test_automatic_baselines_run_where_statsforecast_is_and_not_on_too_many_origins(data, monkeypatch):
    assets, rows = np.zeros(1, int), np.array([400])
    named, notes = run_baselines(
        data, LEVELS, assets=assets, rows=rows, fit_until=data.borders.val_end, names=["random walk", "AutoETS"]
    )
    installed = importlib.util.find_spec("statsforecast") is not None
    assert ("AutoETS" in named) == installed == (notes == [])
    if not installed:
        assert notes == ["AutoETS is left out: statsforecast is not installed; run: pip install 'blockyard[baselines]'"]
    monkeypatch.setattr("blockyard.tasks.price.baselines.MOST_ORIGINS", 0)
    every, notes = run_baselines(data, LEVELS, assets=assets, rows=rows, fit_until=data.borders.val_end)
    assert not set(AUTOMATIC) & set(every)
    assert notes == ["AutoARIMA and AutoETS are left out: they filter 1 origins one by one"] * installed


def test_no_baseline_looks_ahead(data, beside):
    """Change everything after a date in the test part: forecasts from origins up to it stay as they were."""
    assets, rows = data.origins("test")
    dates = data.dates(assets, rows)
    middle = np.sort(dates)[len(dates) // 2]
    changed = PriceData(perturb_futures(data.prices, middle), data.config, context=16, horizons=(1, 2, 5))
    after, _ = run_baselines(changed, LEVELS, assets=assets, rows=rows, fit_until=data.borders.val_end)
    for name in beside:
        early = dates <= middle
        assert (after[name].quantiles[early] == beside[name].quantiles[early]).all(), name
        assert (after[name].point[early] == beside[name].point[early]).all(), name


def test_an_unknown_baseline_is_refused(data):
    with pytest.raises(InputError, match=r"no baseline 'GARCH' \(did you mean 'GARCH-t'\?\)"):
        run_baselines(
            data, LEVELS, assets=np.zeros(1, int), rows=np.array([200]), fit_until=data.borders.val_end, names=["GARCH"]
        )
