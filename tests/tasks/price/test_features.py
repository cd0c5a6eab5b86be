"""Features, targets, splits and scaling: as defined, and never from the future."""

from dataclasses import replace

import numpy as np
import pytest

from blockyard.errors import InputError
from blockyard.tasks.price.data.config import PriceDataConfig
from blockyard.tasks.price.data.features import NAMES, WARM_UP, available, feature_table, future_returns, targets
from blockyard.tasks.price.data.leakage import lookahead, perturb_future, perturb_futures
from blockyard.tasks.price.data.table import Asset, Prices
from blockyard.tasks.price.data.windows import PriceData, fit_scaling
from tests.fixtures.prices import asset, price_data, prices
from tests.tasks.price.twin import features as twin


def columns(one: Asset) -> dict[str, np.ndarray]:
    table = feature_table(one)
    return {name: table.values[:, k] for k, name in enumerate(table.names)} | {"sigma": table.sigma}


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("weekday", "month")])
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


def test_no_feature_and_no_sigma_looks_ahead():
    assert lookahead(columns, asset(300, extra=np.random.default_rng(0).standard_normal(300))) == []


def leaky(one: Asset) -> dict[str, np.ndarray]:
    """Honest columns, and four ways in which features leak in published code."""
    p = np.log(one.close)
    centred = np.convolve(p, np.ones(5) / 5, mode="same")
    return {
        **columns(one),
        "centred mean": centred,
        "whole-series z-score": (p - p.mean()) / p.std(),
        "min-max": (p - p.min()) / np.ptp(p),
        "next open": np.append(one.open[1:], one.open[-1]),
        "share of the highest": one.close / one.close.max(),
        "share of the lowest": one.close / one.close.min(),
    }


def test_deliberately_leaky_features_are_found():
    one = asset(300)
    # The series' own extremes lie early, where no ordinary future reaches them.
    one = replace(one, close=one.close * np.where(np.arange(300) == 5, 3.0, np.where(np.arange(300) == 6, 0.3, 1.0)))
    leaks = [
        "centred mean",
        "whole-series z-score",
        "min-max",
        "next open",
        "share of the highest",
        "share of the lowest",
    ]
    assert sorted(lookahead(leaky, one)) == sorted(leaks)


def test_changing_the_future_leaves_the_past_and_changes_the_rest():
    one = asset(100, seed=3)
    changed = perturb_future(one, 60)
    assert (changed.close[:61] == one.close[:61]).all() and (changed.close[61:] != one.close[61:]).all()
    assert (changed.volume[61:] != one.volume[61:]).all()
    assert (changed.low <= changed.high).all()


def test_targets_are_cumulative_log_returns_over_sigma_root_h():
    table = feature_table(asset(100))
    y = targets(table.log_close, table.sigma, (1, 5))
    t = 70
    assert y[t, 1] == pytest.approx((table.log_close[t + 5] - table.log_close[t]) / (table.sigma[t] * 5**0.5))
    assert np.isnan(y[-5:, 1]).all() and np.isfinite(y[-6, 1]) and np.isnan(y[-1, 0])
    assert np.isnan(future_returns(table.log_close[:3], (5,))).all()


def test_a_targets_unit_is_known_when_the_forecast_is_made():
    one = asset(300)
    before, after = feature_table(one), feature_table(perturb_future(one, 200))
    assert (before.sigma[20:201] == after.sigma[20:201]).all()


def test_no_label_crosses_a_border_and_the_embargo_is_kept():
    data = price_data(500, 2, embargo=7)
    for number, table in enumerate(data.tables):
        rows = {}
        for part in ("train", "val", "test"):
            assets, all_rows = data.origins(part)
            rows[part] = all_rows[assets == number]
        reach = data.reach
        assert table.ds[rows["train"][-1] + reach] <= data.borders.train_end
        assert table.ds[rows["val"][-1] + reach] <= data.borders.val_end
        # The first 7 rows after each border start nothing.
        assert rows["val"][0] == np.searchsorted(table.ds, data.borders.train_end, "right") + 7
        assert rows["test"][0] == np.searchsorted(table.ds, data.borders.val_end, "right") + 7
        assert rows["train"][0] == WARM_UP + data.context - 1
        assert rows["test"][-1] + reach == len(table) - 1


def test_borders_are_dates_so_that_no_asset_sees_anothers_future():
    early, late = asset(400, 0, "A"), asset(400, 1, "B")
    late = replace(late, ds=late.ds + np.timedelta64(200, "D"))
    data = PriceData(Prices((early, late), "two"), PriceDataConfig(), context=8, horizons=(1, 5))
    ends = {part: [] for part in ("train", "val", "test")}
    for part, found in ends.items():
        assets, rows = data.origins(part)
        found += [data.tables[a].ds[r] for a, r in zip(assets, rows)]
    assert max(ends["train"]) < min(ends["val"]) and max(ends["val"]) < min(ends["test"])


def test_scaling_knows_the_training_rows_alone():
    before = price_data(400)
    changed = perturb_futures(before.prices, before.borders.train_end)
    after = PriceData(changed, before.config, context=16, horizons=(1, 2, 5))
    assert (before.mean == after.mean).all() and (before.std == after.std).all()
    # And it does depend on them.
    assert (
        fit_scaling(before.tables, replace(before.borders, train_end=before.borders.val_end))[0] != before.mean
    ).any()


def test_training_batches_do_not_change_with_the_future():
    before = price_data(400)
    after = PriceData(
        perturb_futures(before.prices, before.borders.train_end), before.config, context=16, horizons=(1, 2, 5)
    )
    for step in range(3):
        a, b = (data.batch(1, step, 32, slice(0, 32)) for data in (before, after))
        assert (a["x"] == b["x"]).all() and (a["y"] == b["y"]).all()


def test_a_window_ends_at_its_origin():
    data = price_data(300, 2)
    assets, rows = data.origins("test")
    for i in (0, len(rows) // 2, len(rows) - 1):
        window = data.windows(assets[i : i + 1], rows[i : i + 1])[0].numpy()
        table = data.tables[assets[i]]
        assert np.allclose(window, table.values[rows[i] - 15 : rows[i] + 1], rtol=1e-6)


def test_batches_are_a_function_of_seed_and_step_for_any_share_of_rows():
    data = price_data(300)
    whole = data.batch(3, 5, 8, slice(0, 8))
    parts = [data.batch(3, 5, 8, slice(i, i + 4)) for i in (0, 4)]
    assert (whole["x"][4:] == parts[1]["x"]).all() and (whole["y"][:4] == parts[0]["y"]).all()
    assert (data.batch(3, 6, 8, slice(0, 8))["x"] != whole["x"]).any()


def test_borders_can_be_given_as_dates():
    data = price_data(500, train_end="2015-12-31", val_end="2016-06-30")
    assert data.borders.describe() == {"train_end": "2015-12-31", "val_end": "2016-06-30"}
    with pytest.raises(InputError, match=r"data.train_end=2016-07-01 must come before data.val_end=2016-06-30"):
        price_data(500, train_end="2016-07-01", val_end="2016-06-30")
    with pytest.raises(InputError, match=r"data.val_end='soon' should be a date such as"):
        price_data(500, val_end="soon")


def test_too_few_rows_for_windows_are_one_line_with_what_is_needed():
    with pytest.raises(InputError, match=r"no train window fits; the longest series has 100 rows, .*\(60 of warm-up, "):
        price_data(100, context=32)


def test_assets_share_the_features_they_all_have():
    full, bare = asset(400, 0, "A"), Asset("B", asset(400).ds, asset(400, 1).close)
    data = PriceData(Prices((full, bare), "two"), PriceDataConfig(), context=8, horizons=(1,))
    assert len(data.features) == 13


def test_fractions_and_choices_out_of_range_are_refused():
    for options in ({"val_fraction": 0.0}, {"test_fraction": 1.0}, {"val_fraction": 0.6, "test_fraction": 0.5},
                    {"embargo": -1}, {"max_gap": 0.0}, {"missing": "fill"}):  # fmt: skip
        with pytest.raises(InputError, match=r"data\."):
            PriceDataConfig(**options)


def test_the_same_prices_have_the_same_fingerprint_and_others_another():
    assert prices(100).fingerprint() == prices(100).fingerprint()
    assert prices(100).fingerprint()["sha256"] != prices(101).fingerprint()["sha256"]
