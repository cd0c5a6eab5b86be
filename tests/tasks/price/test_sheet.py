"""The tear sheet: what its sentence may say, what stands on it, and which folder it gets."""

import json
import re

import numpy as np
import pytest

from blockyard.tasks.price.backtest import HOLD, run_backtest, run_hold
from blockyard.tasks.price.backtest_folder import BacktestSpec, folder_for
from blockyard.tasks.price.baselines import Forecast
from blockyard.tasks.price.earnings import Course, describe
from blockyard.tasks.price.positions import BacktestConfig
from blockyard.tasks.price.sheet import headline, render_sheet
from blockyard.tasks.price.sheet_charts import thinned, trailing, trailing_window
from blockyard.tasks.price.summary import summarise
from tests.fixtures.prices import LEVELS

CONFIG = BacktestConfig(rule="volatility", horizon=2)


def record_of(data, beside, forecast, config=CONFIG):
    assets, rows = data.origins("test")
    everyone = {
        forecast.name: forecast,
        **{n: beside[n] for n in ("unconditional", "random walk", "EWMA(0.94)", "GARCH-t")},
    }
    summary = summarise(data, assets, rows, everyone, levels=LEVELS, border=data.borders.val_end, repeats=30)
    earned = {name: run_backtest(data, assets, rows, one, config, LEVELS) for name, one in everyone.items()}
    earned[HOLD] = run_hold(data, assets, rows, config)
    spec = BacktestSpec(config, data.prices.fingerprint(), None, 1, False)
    return {
        "model": forecast.name, "horizon": config.horizon, "rule": config.describe(), "source": "a<b.csv",
        "target": config.target_volatility,
        "settings": spec.words(252), "data": data.prices.report().splitlines(), "notes": ["read this & that"],
        "summary": summary, "earned": earned, "command": "blockyard backtest runs/x 'a<b.csv' --folds 1",
    }  # fmt: skip


@pytest.fixture(scope="module")
def record(data, beside):
    ridge = beside["ridge"]
    return record_of(data, beside, Forecast("my+model", ridge.point, ridge.quantiles * 1.1))


def test_the_page_holds_all_that_it_promises_and_asks_the_network_for_nothing(record):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    page = render_sheet(record)
    for words in (
        headline(record), "What one grew to", "Trailing Sharpe", "Month by month", "Deepest falls", "IC over time",
        "Where outcomes lay", "less that of GARCH-t", "Share of outcomes within central intervals", "95% interval",
        "Costs and turnover", "Beside baselines", "buy and hold", "read this &amp; that", "rule volatility, horizon 2",
        "simulated", "Nothing here is advice",
    ):  # fmt: skip
        assert words in page or words.replace(" [", "\u00a0[") in page, words
    assert "a&lt;b.csv" in page and "a<b" not in page
    assert (
        "<script" not in page
        and "http" not in page
        and "@import" not in page
        and "url(" not in page.replace("url(#", "")
    )
    assert page.count("<svg") >= 4 and "nan" not in re.sub("<[^>]*>", "", page).lower().replace("finan", "")
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_the_months_of_a_year_compound_to_it(record):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    found = record["earned"]["my+model"]
    page = render_sheet(record)
    table = page[page.index('<table class="months">') :].split("</table>")[0]
    for year in {month["year"] for month in found["months"]}:
        row = next(r for r in table.split("<tr>") if f"<th>{year}</th>" in r)
        shown = re.findall(r"<td[^>]*>([^<]*)</td>", row)
        values = [m["return"] for m in found["months"] if m["year"] == year]
        assert len(shown) == 13
        assert float(shown[-1].replace("−", "-")) == pytest.approx(100 * (np.prod(1 + np.array(values)) - 1), abs=0.051)


def said(gains, hold):
    """The headline about gains beside those of holding, on the same dates."""
    ds = np.arange("2015-01-01", "2030-01-01", dtype="datetime64[D]")[: len(gains) + 1].astype("datetime64[ns]")
    one, other = (Course(ds[0], ds[1:], np.asarray(g), *np.ones((3, len(gains)))) for g in (gains, hold))
    earned = {"m": describe(one, 252, 0.0, beside=other), HOLD: describe(other, 252, 0.0)}
    return headline({"model": "m", "earned": earned})


def test_the_headline_says_no_more_than_the_intervals():
    draw = np.random.default_rng(0)
    noise, common = draw.standard_normal((2, 2000)) * 0.01
    noise -= noise.mean()
    common -= common.mean()
    assert re.fullmatch(
        r"Sharpe 0\.00\u00a0\[−0\.\d\d,\u00a00\.\d\d\]: not told from zero nor from buy and hold \(0\.00\)\.",
        said(noise, common),
    )
    assert ": above zero, not told from buy and hold (" in said(noise + 0.001, common + 0.001)
    assert ": below zero, not told from buy and hold (−" in said(noise - 0.001, common - 0.001)
    assert ": above zero, above buy and hold (" in said(common + 0.002, common + 0.0005)
    assert ": not told from zero, below buy and hold (" in said(common, common + 0.001)
    assert ": not told from zero, above buy and hold (" in said(common, common - 0.001)


def test_what_was_not_traded_is_said(data, beside):
    _, rows = data.origins("test")
    points = record_of(data, beside, Forecast("points", np.ones((len(rows), 3)), None))
    assert headline(points) == "Nothing was traded: the rule needs widths, and points forecasts points alone."
    assert points["earned"]["points"] is None
    still = record_of(data, beside, Forecast("still", np.zeros((len(rows), 3)), None), BacktestConfig())
    assert headline(still).startswith("Nothing was held by this rule; buy and hold has a Sharpe ratio of ")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    for one in (points, still):
        page = render_sheet(one)
        assert headline(one).split(";")[0] in page and "How well it forecast" in page


def test_trailing_figures_and_thinned_drawdowns_are_those_of_loops():
    gains = 0.01 * np.random.default_rng(0).standard_normal(300)
    mean, spread = trailing(np.cumsum(np.log1p(gains)), 40)
    assert len(mean) == 261
    assert mean[17] == pytest.approx(gains[17:57].mean()) and spread[17] == pytest.approx(gains[17:57].std())
    depth = -np.abs(gains)
    last, deepest = thinned(depth, 50)
    assert len(last) == 50 and last[-1] == 299 and deepest.min() == depth.min()
    assert deepest[0] == depth[: last[0] + 1].min()
    assert thinned(depth[:7], 50)[0].tolist() == list(range(7))
    assert trailing_window({"steps_per_year": 252, "steps": 1000}) == 126
    assert trailing_window({"steps_per_year": 252, "steps": 90}) == 30
    assert trailing_window({"steps_per_year": 252, "steps": 50}) is None


def test_each_backtest_gets_a_folder_of_its_own(tmp_path, data):
    one = BacktestSpec(CONFIG, data.prices.fingerprint(), None, 4, False)
    assert folder_for(tmp_path, one) == tmp_path / "backtest"
    # As an earlier version left it: kept.
    (tmp_path / "backtest").mkdir()
    (tmp_path / "backtest" / "backtest.json").write_text("{}")
    second = folder_for(tmp_path, one)
    assert second == tmp_path / "backtest-2"
    one.save(second)
    (second / "backtest.json").write_text("{}")
    assert folder_for(tmp_path, one) == second
    other = BacktestSpec(BacktestConfig(rule="sign"), data.prices.fingerprint(), None, 4, False)
    assert folder_for(tmp_path, other) == tmp_path / "backtest-3"
    later = BacktestSpec(CONFIG, {**data.prices.fingerprint(), "sha256": "another"}, None, 4, False)
    assert folder_for(tmp_path, later) == tmp_path / "backtest-3"
    (second / "settings.json").write_text("{damaged")
    assert folder_for(tmp_path, one) == tmp_path / "backtest-3"
    assert json.loads(json.dumps(one.to_dict()))["config"]["rule"] == "volatility"


def test_a_target_is_set_beside_what_was_had(data, beside):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    ridge = beside["ridge"]
    config = BacktestConfig(rule="volatility", horizon=2, target_volatility=0.1)
    page = render_sheet(record_of(data, beside, Forecast("m", ridge.point, ridge.quantiles), config))
    had = re.search("Volatility a year: 10\\.0\u00a0% asked for, (\\d+\\.\\d)\u00a0% had, at a mean gross of", page)
    assert had is not None and 5 < float(had.group(1)) < 20
