"""Forecasts of a trained model: tidy tables, dates, calibration by the validation part alone."""

from dataclasses import replace

import numpy as np
import pytest

from blockyard.errors import InputError
from blockyard.tasks.price.data.leakage import perturb_futures
from blockyard.tasks.price.data.windows import PriceData
from blockyard.tasks.price.forecaster import Forecaster, future_dates, future_table
from blockyard.tasks.price.model import LEVELS
from tests.fixtures.price_models import started
from tests.fixtures.prices import price_data, prices


@pytest.fixture(scope="module")
def data():
    return price_data(400)


def test_forecasts_of_several_assets_are_a_tidy_table(data):
    many = prices(200, 3)
    frame = future_table(Forecaster(started(data)), many)
    names = ["unique_id", "cutoff", "ds", "horizon", "last", "price"]
    assert list(frame.columns) == [*names, *(f"q{level:g}" for level in LEVELS)]
    assert len(frame) == 9 and frame["unique_id"].unique().tolist() == ["A", "B", "C"]
    quantiles = frame[[f"q{level:g}" for level in LEVELS]].to_numpy()
    assert (np.diff(quantiles, axis=1) > 0).all() and (quantiles > 0).all()
    assert frame["price"].to_numpy() == pytest.approx(quantiles[:, 4])
    assert np.allclose(frame["last"][:3], many.assets[0].close[-1])
    assert (frame["ds"] > frame["cutoff"]).all()


def test_a_forecast_from_a_date_does_not_look_at_later_rows(data):
    forecaster, whole = Forecaster(started(data)), prices(200)
    at = str(whole.assets[0].ds[150])[:10]
    cut = replace(whole, assets=(whole.assets[0].until(151),))
    assert future_table(forecaster, whole, at).equals(future_table(forecaster, cut))
    with pytest.raises(InputError, match=r"--at=1990-01-01: A begins later"):
        future_table(forecaster, whole, "1990-01-01")
    with pytest.raises(InputError, match="has 70 rows, too few: a forecast takes 76"):
        future_table(forecaster, prices(70))


def test_future_dates_are_business_days_steps_or_numbers():
    days = np.arange("2020-01-01", "2020-02-01", dtype="datetime64[D]")
    business = days[np.is_busday(days)].astype("datetime64[ns]")
    assert [str(d)[:10] for d in future_dates(business, (1, 2))] == ["2020-02-03", "2020-02-04"]
    assert str(future_dates(days.astype("datetime64[ns]"), (1,))[0])[:10] == "2020-02-01"
    assert future_dates(np.arange(5), (1, 3)).tolist() == [5, 7]


def test_calibration_of_a_model_uses_the_validation_part_alone(data):
    model = started(data)
    calibrated = Forecaster(model).calibrated(data, "on").calibration
    changed = PriceData(perturb_futures(data.prices, data.borders.val_end), data.config, context=16, horizons=(1, 2, 5))
    assert (Forecaster(model).calibrated(changed, "on").calibration.shifts == calibrated.shifts).all()
    assert calibrated.rows == len(data.origins("val")[0])
    assert Forecaster(model).calibrated(data, "off").calibration is None
    points = Forecaster(started(data, head="point")).calibrated(data)
    assets, rows = data.origins("test")
    assert points.forecast(data, assets, rows).quantiles.shape == (len(rows), 3, 9)
