"""Nights and holes are told from steps: volatility of a step, of a night, labels, and time of day."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from blockyard.errors import InputError
from blockyard.tasks.price.baselines import run_baselines
from blockyard.tasks.price.data.config import PriceDataConfig
from blockyard.tasks.price.data.features import WARM_UP, available, feature_table, targets
from blockyard.tasks.price.data.leakage import lookahead, perturb_future, perturb_futures
from blockyard.tasks.price.data.reader import read_prices
from blockyard.tasks.price.data.steps import find_steps
from blockyard.tasks.price.data.table import Asset, Prices
from blockyard.tasks.price.data.windows import PriceAssets, PriceData, steps_of
from blockyard.tasks.price.forecaster import Forecaster, future_table
from blockyard.tasks.price.model import PriceConfig, PriceForecaster
from blockyard.tasks.price.task import start_from_data
from tests.fixtures.prices import asset


def bars_of(ds: Any, sigma: float = 1e-3, night: float = 0.0, seed: int = 0, **extra: np.ndarray) -> Asset:
    """A series whose returns are of size sigma, and of size `night` besides at the bars that open a session."""
    draw, ds = np.random.default_rng(seed), np.asarray(ds, "datetime64[ns]")
    r = sigma * draw.standard_normal(len(ds))
    r += night * find_steps(ds).night * draw.choice([-1.0, 1.0], len(ds))
    close = 100 * np.exp(np.cumsum(r))
    opening = close * np.exp(0.1 * sigma * draw.standard_normal(len(ds)))
    high, low = np.maximum(close, opening) * 1.0001, np.minimum(close, opening) / 1.0001
    volume = np.round(1e4 * np.exp(0.3 * draw.standard_normal(len(ds))))
    return Asset("A", ds, close, opening, high, low, volume, extra=extra)


def session(days: int = 8, step: str = "5min") -> pd.DatetimeIndex:
    bars = pd.date_range("2024-01-01", periods=days * 400, freq=step)
    minute = bars.hour * 60 + bars.minute
    inside = bars[(minute >= 570) & (minute < 960) & (bars.day_of_week < 5)]
    return inside[: days * (6.5 * pd.Timedelta("1h") // pd.Timedelta(step))]


def hours(n: int, *without: range) -> pd.DatetimeIndex:
    gone = [row for part in without for row in part]
    return pd.date_range("2024-01-01", periods=n, freq="h").delete(gone)


def test_days_weeks_and_months_have_steps_alone() -> None:
    for ds in (
        pd.bdate_range("2020-01-01", periods=300).delete([5, 60, 61, 62, 63, 64, 65, 66, 67]),
        pd.date_range("2020-01-03", periods=80, freq="W-FRI"),
        pd.date_range("2015-01-31", periods=60, freq="ME"),
        hours(400, range(50, 55)),
    ):
        assert find_steps(ds.to_numpy("datetime64[ns]")).plain
    assert find_steps(np.arange(50)).plain


def test_nights_and_weekends_of_sessions_are_found() -> None:
    ds = session(8).to_numpy("datetime64[ns]")
    steps = find_steps(ds)
    assert np.flatnonzero(steps.night).tolist() == [78 * day for day in range(1, 8)] and not steps.hole.any()
    # Lunch is none, nor are a few bars without trades.
    noon = (session(8).hour == 12).nonzero()[0]
    assert np.array_equal(find_steps(np.delete(ds, [*noon, 100, 101])).night.sum(), 7)
    weekly = pd.date_range("2024-01-01", periods=24 * 60, freq="h")
    currencies = weekly[(weekly.day_of_week < 5)].to_numpy("datetime64[ns]")
    steps = find_steps(currencies)
    assert [str(day)[:10] for day in currencies[steps.night][:2]] == ["2024-01-08", "2024-01-15"]
    assert steps.sessions is not None and steps.sessions.period == 7 * 86400


def test_hours_of_a_market_tell_how_many_nights_lie_ahead() -> None:
    ds = session(8).to_numpy("datetime64[ns]")
    sessions = find_steps(ds).sessions
    assert sessions is not None
    rows = sessions.nights(ds[:78], (1, 77, 78, 100, 160))
    assert rows[0].tolist() == [0, 0, 1, 1, 2] and rows[76].tolist() == [0, 1, 1, 2, 3]
    assert rows[77].tolist() == [1, 1, 1, 2, 3]
    # As many as the rows themselves show, wherever those reach.
    night = np.cumsum(find_steps(ds).night)
    for h in (1, 5, 80):
        assert (sessions.nights(ds[:-h], (h,))[:, 0] == night[h:] - night[:-h]).all()


def loops(one: Asset, t: int, window: int) -> tuple[float, float]:
    """σ of a step and of a night at row t, from the definition: the last returns of each kind, and their floors."""
    steps = find_steps(one.ds)
    p = [math.log(c) for c in one.close]
    r = [0.0] + [p[k] - p[k - 1] for k in range(1, t + 1)]
    within = [r[k] for k in range(1, t + 1) if not steps.night[k] and not steps.hole[k]]
    nights = [r[k] for k in range(1, t + 1) if steps.night[k]]

    def rms(values: list[float]) -> float:
        return math.sqrt(sum(v * v for v in values) / len(values)) if values else 0.0

    sigma = max(rms(within[-window:]), 0.1 * rms(within))
    return sigma, max(rms(nights[-20:]), max(rms(within[-20:]), 0.1 * rms(within)))


def test_sigma_is_of_steps_within_sessions_and_nights_have_their_own() -> None:
    one = bars_of(session(30), 1e-3, night=0.02)
    table = feature_table(one)
    for t in (60, 77, 78, 79, 500, 1000):
        sigma, night = loops(one, t, 20)
        assert table.sigma[t] == pytest.approx(sigma, rel=1e-9)
        assert table.night_sigma is not None and table.night_sigma[t] == pytest.approx(night, rel=1e-9)
    # Nights of twenty steps' size leave it where it is; taken for steps they treble it after each.
    rows = np.flatnonzero(find_steps(one.ds).night)[2:] + 5
    assert table.sigma[rows].mean() == pytest.approx(1e-3, rel=0.15)
    assert feature_table(one, apart=False).sigma[rows].mean() > 3e-3
    y = targets(table, (1, 5, 40))
    assert 0.8 < np.nanstd(y[200:, 0]) < 1.3 and 0.8 < np.nanstd(y[200:, 2]) < 1.3
    # The unit says so before the night: at the last bar of a session it is the night's.
    assert np.allclose(table.unit((1,))[rows - 6, 0], table.night_sigma[rows - 6])
    z = table.values[:, table.names.index("return_1")]
    assert np.abs(z[rows - 5]).max() < 2.5 and np.nanstd(z) < 1.3


def test_features_of_the_day_tell_where_in_the_session_a_bar_is() -> None:
    one = bars_of(session(10), night=0.02)
    table = feature_table(one)
    found = {name: table.values[WARM_UP:, k] for k, name in enumerate(table.names)}
    assert set(table.names) - set(available(asset(90))) == {"session_sin", "session_cos", "opens", "overnight"}
    first = np.flatnonzero(find_steps(one.ds).night) - WARM_UP
    assert np.allclose(found["session_cos"][first], 1) and np.allclose(found["session_cos"][first[1:] - 1], -1)
    assert np.allclose(found["session_sin"][first], 0) and found["session_sin"].max() == pytest.approx(1, abs=1e-3)
    assert np.flatnonzero(found["opens"]).tolist() == first.tolist()
    held = found["overnight"]
    assert (held[first[2] : first[3]] == held[first[2]]).all() and held[first[2]] == found["return_1"][first[2]]
    clock = feature_table(bars_of(hours(400)))
    assert {"day_sin", "day_cos"} < set(clock.names) and not {"opens", "session_sin"} & set(clock.names)
    noon = int(np.flatnonzero(pd.DatetimeIndex(clock.ds).hour == 12)[5])
    assert clock.values[noon, clock.names.index("day_cos")] == pytest.approx(-1)


def test_nothing_of_the_day_looks_ahead() -> None:
    def columns(one: Asset) -> dict[str, np.ndarray]:
        table = feature_table(one)
        return {
            **{name: table.values[:, k] for k, name in enumerate(table.names)},
            **{"sigma": table.sigma, "unit": table.unit((1, 5, 90)), "log_close": table.log_close},
            **({} if table.night_sigma is None else {"night": table.night_sigma}),
        }

    assert lookahead(columns, bars_of(session(8), night=0.02)) == []
    assert lookahead(columns, bars_of(hours(500, range(200, 260)))) == []


def test_a_hole_is_no_return_of_a_step() -> None:
    ds = hours(1500, range(700, 900))
    one = bars_of(ds)
    # The price doubles while nobody looks.
    one = replace(one, **{n: getattr(one, n) * np.where(np.arange(1300) < 700, 1, 2) for n in ("close", "open", "high",
                                                                                                "low")})  # fmt: skip
    table = feature_table(one)
    assert np.flatnonzero(table.steps.hole).tolist() == [700]
    assert table.sigma[690:730].max() < 2e-3 and feature_table(one, apart=False).sigma[700] > 0.1
    for name in table.names:
        column = table.values[WARM_UP:, table.names.index(name)]
        assert np.abs(column).max() < 60, name
    assert np.allclose(table.price, one.close, rtol=1e-12)
    data = PriceData(Prices((one,), "x"), PriceDataConfig(), context=16, horizons=(1, 5))
    _, rows = data.origins("train")
    assert not set(range(695, 700)) & set(rows.tolist()) and {694, 700} <= set(rows.tolist())
    every, _ = data.between(None)[1], data.between(None)[0]
    assert not set(range(695, 700)) & set(every.tolist())
    assert float(np.nanmax(np.abs(data.returns(np.zeros_like(rows), rows)))) < 0.02


def test_holes_are_told_with_what_becomes_of_them(tmp_path: Any) -> None:
    frame = pd.DataFrame({"Date": hours(1500), "Close": 100 + np.arange(1500) * 7 % 5})
    assert read_prices(frame).notes == ()
    holed = frame.drop(index=[*range(700, 900), *range(1000, 1010)])
    (note,) = read_prices(holed).notes
    assert note == (
        "frame 1: 210 rows are missing (14%) in 2 holes, the longest after 2024-01-30 03:00:00, where the step is 1 "
        "hour; returns over them are left out, and no label reaches over one"
    )
    assert read_prices(frame.drop(index=range(700, 703))).notes == ()
    many = frame.drop(index=[r for start in range(0, 1480, 30) for r in range(start, start + 8)])
    prices = read_prices(many)
    with pytest.raises(InputError, match=r"no train window fits.*49 holes, which no label may reach over"):
        PriceData(prices, PriceDataConfig(), context=16, horizons=(1, 30))


def test_a_share_that_trades_now_and_then_has_no_holes_but_one() -> None:
    draw = np.random.default_rng(0)
    every = session(20, "1min")
    kept = np.sort(draw.choice(len(every), len(every) // 3, replace=False))
    steps = find_steps(every[kept].to_numpy("datetime64[ns]"))
    assert steps.hole.sum() < 0.01 * len(kept)
    gone = kept[(kept < 800) | (kept > 900)]
    at = int(np.searchsorted(gone, 850))
    assert find_steps(every[gone].to_numpy("datetime64[ns]")).hole[at]


def test_daily_data_are_what_they_were() -> None:
    one = asset(300)
    apart, before = feature_table(one), feature_table(one, apart=False)
    assert apart.names == before.names and len(apart.names) == 20
    assert np.array_equal(apart.values, before.values, equal_nan=True)
    assert np.array_equal(apart.sigma, before.sigma, equal_nan=True) and apart.night_sigma is None
    both = [PriceData(Prices((one,), "x", apart=apart), PriceDataConfig(), context=16, horizons=(1, 5))
            for apart in (True, False)]  # fmt: skip
    assert both[0].fingerprint == both[1].fingerprint


def test_a_run_of_before_is_known_and_forecasts_as_it_did() -> None:
    """Intraday data have other inputs now: a run that was begun without is not resumed, and forecasts with its own."""
    one = bars_of(session(14), night=0.02)
    kept: dict[str, Any] = {"config": PriceDataConfig(), "context": 16, "horizons": (1, 5)}
    new, old = (PriceData(Prices((one,), "x", apart=apart), **kept) for apart in (True, False))
    assert new.fingerprint["sha256"] != old.fingerprint["sha256"] and new.assets.apart and not old.assets.apart
    shape: dict[str, Any] = {"context": 16, "horizons": (1, 5), "d_model": 8, "n_heads": 2}
    model = PriceForecaster(PriceConfig(features=old.features, **shape)).eval()
    start_from_data(model, old)
    prices = Prices((one,), "x")
    before = future_table(Forecaster(model, None, "m", apart=False), prices)
    assert before.equals(future_table(Forecaster(model), replace(prices, apart=False)))
    # What the folders of before do not say.
    assert PriceAssets((), "", "", (), "").apart is False


def test_windows_and_labels_before_a_date_do_not_know_what_comes_after_it() -> None:
    """Of bars within the day, with a hole, and with a column known in advance that stays."""
    ds = np.delete(session(30), range(1175, 1200))
    one = bars_of(ds, night=0.02)
    one = replace(one, future={"event": (np.arange(len(ds) + 5) % 17 == 3).astype(float)})
    kept: dict[str, Any] = {"config": PriceDataConfig(), "context": 16, "horizons": (1, 5)}
    before = PriceData(Prices((one,), "x"), **kept)
    assert {"event@2-5", "overnight", "session_cos"} < set(before.features)
    assert before.tables[0].steps.hole.sum() == 1 and before.tables[0].steps.night.sum() == 29
    after = PriceData(perturb_futures(before.prices, before.borders.val_end), **kept)
    assert np.array_equal(before.mean, after.mean) and np.array_equal(before.std, after.std)
    for step in range(3):
        a, b = (data.batch(0, step, 64, slice(None)) for data in (before, after))
        assert torch.equal(a["x"], b["x"]) and torch.equal(a["y"], b["y"])
    for a, b in zip(before.batches("val", 64), after.batches("val", 64)):
        assert torch.equal(a["x"], b["x"]) and torch.equal(a["y"], b["y"])
    levels, (assets, rows) = (0.1, 0.5, 0.9), before.origins("val")
    found = [run_baselines(data, levels, assets=assets, rows=rows, fit_until=data.borders.train_end)[0]
             for data in (before, after)]  # fmt: skip
    for name, forecast in found[0].items():
        assert np.array_equal(forecast.point, found[1][name].point), name


def test_a_units_night_is_known_when_the_forecast_is_made() -> None:
    one = bars_of(session(8), night=0.02)
    before, after = feature_table(one), feature_table(perturb_future(one, 300))
    assert np.array_equal(before.unit((1, 5, 90))[:301], after.unit((1, 5, 90))[:301], equal_nan=True)


def test_a_step_that_training_had_not_is_said() -> None:
    def series(step: str, name: str) -> Prices:
        ds = pd.date_range("2024-01-01", periods=300, freq=step)
        frame = pd.DataFrame({"unique_id": name, "ds": ds, "y": 100 + np.sin(np.arange(300))})
        return read_prices(frame)

    assert list(steps_of(series("D", "a"))) == ["1 day"]
    seen = PriceAssets((), "", "", (), "", step="1 day")
    assert seen.unlike(series("D", "a")) == []
    (note,) = seen.unlike(series("h", "b"))
    assert note.startswith("b: a step is 1 hour, where training had 1 day")
    # Runs of before do not know theirs.
    assert PriceAssets((), "", "", (), "").unlike(series("h", "b")) == []
