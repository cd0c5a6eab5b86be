"""Baselines: what their names say, by `arch` itself for GARCH, and never from the future."""

import math

import numpy as np
import pytest

from blockyard.errors import InputError
from blockyard.tasks.price.baselines import BASELINES, run_baselines
from blockyard.tasks.price.data.leakage import perturb_futures
from blockyard.tasks.price.data.windows import PriceData
from tests.fixtures.prices import LEVELS


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
