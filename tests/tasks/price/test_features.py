"""Price features as their twin defines them, and never from the future."""

from dataclasses import replace

import numpy as np
import pytest

from blockyard.errors import InputError
from blockyard.tasks.price.data.features import WARM_UP, available, feature_table
from blockyard.tasks.price.data.table import Asset
from tests.fixtures.prices import asset
from tests.tasks.price.twin import features as twin


def columns(one: Asset) -> dict[str, np.ndarray]:
    table = feature_table(one)
    return {name: table.values[:, k] for k, name in enumerate(table.names)} | {"sigma": table.sigma}


@pytest.mark.parametrize("name", [n for n in available(asset(90)) if n not in ("weekday", "month")])
def test_a_feature_equals_its_definition_in_loops(name):
    one = asset(150)
    fast = columns(one)[name]
    slow = twin(name, one.close, one.open, one.high, one.low, one.volume)
    assert np.isnan(fast[:WARM_UP]).all()
    assert np.allclose(fast[WARM_UP:], slow[WARM_UP:], rtol=1e-9, atol=1e-11)


def test_there_are_twenty_features_from_bars_and_fewer_from_closes():
    one = asset(100)
    assert len(available(one)) == 20
    closes = Asset("A", one.ds, one.close)
    assert len(available(closes)) == 13
    assert len(available(Asset("A", np.arange(100), one.close))) == 11
    with pytest.raises(InputError, match="feature 'gap' needs columns that A has not"):
        feature_table(closes, ["gap"])
    with pytest.raises(InputError, match=r"feature 'rsj' is unknown \(did you mean 'rsi'\?\)"):
        feature_table(one, ["rsj"])


def test_calendar_features_are_those_of_the_date():
    one = asset(100)
    found = columns(one)
    dates = one.ds[WARM_UP:].astype("datetime64[D]").tolist()
    assert np.allclose(found["weekday"][WARM_UP:], [(d.weekday() - 2) / 2 for d in dates])
    assert np.allclose(found["month"][WARM_UP:], [(d.month - 6.5) / 5.5 for d in dates])


def test_extra_columns_are_features():
    one = asset(100, turnover=np.arange(100.0))
    assert feature_table(one).names[-1] == "turnover"
    assert feature_table(one).values[-1, -1] == 99.0


def test_a_price_that_stands_still_gives_finite_features():
    one = asset(200)
    close = one.close.copy()
    close[100:160] = close[100]
    still = replace(one, close=close, open=close, high=close, low=close, volume=np.zeros(200))
    table = feature_table(still)
    assert np.isfinite(table.values[WARM_UP:]).all() and (table.sigma[20:] > 0).all()


def test_features_do_not_depend_on_the_prices_unit():
    one = asset(150)
    other = replace(one, close=one.close * 1e4, open=one.open * 1e4, high=one.high * 1e4, low=one.low * 1e4)
    a, b = feature_table(one).values[WARM_UP:], feature_table(other).values[WARM_UP:]
    assert np.allclose(a, b, atol=1e-8)
