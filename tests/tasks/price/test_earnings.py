"""Figures of a course of gains against loops: ratios, drawdowns, months, the IC over time."""

import importlib
import math

import numpy as np
import pytest

from blockyard.tasks.price.earnings import Course, describe, drawdowns, ic_over_time


def course(gains, first="2020-01-30", **options) -> Course:
    ds = np.arange(np.datetime64(first, "D"), np.datetime64(first, "D") + len(gains) + 1).astype("datetime64[ns]")
    gains = np.asarray(gains, float)
    parts = {"changed": np.full(len(gains), 0.5), "gross": np.ones(len(gains)), "net": np.full(len(gains), -0.25)}
    return Course(ds[0], ds[1:], gains, **{**parts, **options})


def test_ratios_are_their_definitions():
    gains = 0.01 * np.random.default_rng(0).standard_normal(300) + 0.001
    hold = course(0.01 * np.random.default_rng(1).standard_normal(300))
    found = describe(course(gains), 252, 0.001, beside=hold)
    mean, year = gains.mean(), 252
    assert found["sharpe"]["value"] == pytest.approx(mean / gains.std() * math.sqrt(year))
    assert found["sharpe"]["low"] < found["sharpe"]["value"] < found["sharpe"]["high"]
    downside = math.sqrt(sum(min(g, 0) ** 2 for g in gains) / 300)
    assert found["sortino"] == pytest.approx(mean / downside * math.sqrt(year))
    wealth, peak, worst = 1.0, 1.0, 0.0
    for g in gains:
        wealth *= 1 + g
        peak = max(peak, wealth)
        worst = min(worst, wealth / peak - 1)
    annual = wealth ** (year / 300) - 1
    assert found["annual_return"] == pytest.approx(annual) and found["max_drawdown"] == pytest.approx(worst)
    assert found["calmar"] == pytest.approx(annual / -worst)
    assert found["turnover"] == pytest.approx(0.5 * 252) and found["costs"] == pytest.approx(0.5 * 252 * 0.001)
    assert (found["gross"], found["net"]) == (1, -0.25)
    other = hold.gains.mean() / hold.gains.std() * math.sqrt(year)
    assert found["sharpe_minus_hold"]["value"] == pytest.approx(found["sharpe"]["value"] - other)
    assert "sharpe_minus_hold" not in describe(hold, 252, 0.001)


def test_a_course_without_losses_has_no_ratio_to_them():
    found = describe(course(np.full(30, 0.01)), 252, 0.0)
    assert found["sortino"] is found["calmar"] is None and found["max_drawdown"] == 0 and found["drawdowns"] == []
    still = describe(course(np.zeros(30)), 252, 0.0)
    assert still["sharpe"] == {"value": 0, "low": 0, "high": 0} and still["annual_return"] == 0


def test_drawdowns_begin_at_a_high_and_end_at_its_recovery():
    steps = [-0.1, 0.2, 0.1, -0.05, -0.05, 0.02, 0.2, -0.3, 0.1]
    one = course(steps)
    found = drawdowns(one, np.cumsum(np.log1p(steps)))
    assert [(f["start"], f["trough"], f["recovery"], f["length"]) for f in found] == [
        ("2020-01-30", "2020-01-31", "2020-02-01", 2),
        ("2020-02-02", "2020-02-04", "2020-02-06", 4),
        ("2020-02-06", "2020-02-07", None, 2),
    ]
    assert [f["depth"] for f in found] == pytest.approx([-0.1, 0.95**2 - 1, -0.3])
    deepest = describe(one, 252, 0.0)["drawdowns"]
    assert [f["depth"] for f in deepest] == pytest.approx([-0.3, -0.1, 0.95**2 - 1])


def test_drawdowns_are_those_of_a_loop():
    gains = 0.02 * np.random.default_rng(3).standard_normal(500)
    one = course(gains)
    found = drawdowns(one, np.cumsum(np.log1p(gains)))
    wealth, high, open_at, slowly = 1.0, 1.0, None, []
    dates = [str(one.start)[:10], *(str(d)[:10] for d in one.ds)]
    at = 0
    for i, g in enumerate(gains, start=1):
        wealth *= 1 + g
        if wealth < high:
            if open_at is None:
                open_at, low = at, 0.0
            low = min(low, wealth / high - 1)
        else:
            if open_at is not None:
                slowly.append((dates[open_at], dates[i], low, i - open_at))
            high, at, open_at = wealth, i, None
    if open_at is not None:
        slowly.append((dates[open_at], None, low, len(gains) - open_at))
    assert [(f["start"], f["recovery"], f["length"]) for f in found] == [(a, b, n) for a, b, _, n in slowly]
    assert [f["depth"] for f in found] == pytest.approx([low for *_, low, _ in slowly])


def test_months_compound_what_was_earned_in_them():
    gains = 0.01 * np.random.default_rng(2).standard_normal(400)
    found = describe(course(gains), 365, 0.0)["months"]
    slowly = {}
    for ds, g in zip(course(gains).ds, gains):
        key = (int(str(ds)[:4]), int(str(ds)[5:7]))
        slowly[key] = slowly.get(key, 1.0) * (1 + g)
    assert [(m["year"], m["month"]) for m in found] == sorted(slowly)
    assert [m["return"] for m in found] == pytest.approx([slowly[key] - 1 for key in sorted(slowly)])
    numbered = Course(0, np.arange(1, 31), np.full(30, 0.01), *np.ones((3, 30)))
    assert describe(numbered, 252, 0.0)["months"] == []


def test_the_ic_of_one_asset_is_a_trailing_correlation():
    scipy = importlib.import_module("scipy.stats")
    draw = np.random.default_rng(0)
    ds = np.arange("2020-01-01", "2021-06-01", dtype="datetime64[D]").astype("datetime64[ns]")
    x = draw.standard_normal(len(ds))
    y = 0.3 * x + draw.standard_normal(len(ds))
    found = ic_over_time(ds, x, y)
    assert (found["across"], found["window"]) == (False, 250) and len(found["ds"]) == len(found["ic"]) == 120
    for place in (0, 60, 119):
        last = int(np.flatnonzero(ds == np.datetime64(found["ds"][place], "ns"))[0])
        inside = slice(last - 249, last + 1)
        assert found["ic"][place] == pytest.approx(scipy.pearsonr(x[inside], y[inside]).statistic, abs=1e-5)
        assert found["rank_ic"][place] == pytest.approx(scipy.spearmanr(x[inside], y[inside]).statistic, abs=1e-5)
    assert ic_over_time(ds, np.ones(len(ds)), y) is None


def test_the_ic_of_many_assets_is_taken_across_them():
    scipy = importlib.import_module("scipy.stats")
    draw = np.random.default_rng(0)
    dates = np.arange("2020-01-01", "2020-07-01", dtype="datetime64[D]").astype("datetime64[ns]")
    # Assets one after the other, as origins come.
    ds = np.tile(dates, 6)
    x, y = draw.standard_normal((2, len(ds)))
    found = ic_over_time(ds, x, y)
    assert found["across"] and found["window"] == 60
    daily = [scipy.spearmanr(x[ds == d], y[ds == d]).statistic for d in dates]
    assert found["rank_ic"][-1] == pytest.approx(np.mean(daily[-60:]), abs=1e-5)
    assert found["rank_ic"][0] == pytest.approx(np.mean(daily[:60]), abs=1e-5)
