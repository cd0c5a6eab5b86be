"""Targets, splits, scaling and windows: no label crosses a border, and batches follow seed and step."""

from dataclasses import replace

import numpy as np
import pytest

from blockyard.errors import InputError
from blockyard.tasks.price.data.config import PriceDataConfig
from blockyard.tasks.price.data.features import WARM_UP, feature_table, future_returns, targets
from blockyard.tasks.price.data.leakage import perturb_future, perturb_futures
from blockyard.tasks.price.data.table import Asset, Prices
from blockyard.tasks.price.data.windows import PriceData, fit_scaling
from tests.fixtures.prices import asset, price_data, prices


def test_targets_are_cumulative_log_returns_over_sigma_root_h():
    table = feature_table(asset(100))
    y = targets(table, (1, 5))
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
