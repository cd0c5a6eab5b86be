"""`train price`, `forecast`, `backtest`, `compare price`: from files to tables; what is wrong is one clear line."""

import contextlib
import io
import json
import os
import re

import numpy as np
import pandas as pd
import pytest

from blockyard.cli import main
from blockyard.tasks.run import load_run
from tests.fixtures.cli import error_of
from tests.fixtures.prices import ohlcv, write

SMALL = {
    "train.steps": 4, "train.batch_size": 8, "train.eval_every": 2, "train.compile": "off", "train.progress": "false",
    "train.device": "cpu", "model.d_model": 8, "model.n_layers": 1, "model.n_heads": 2, "model.context": 16,
    "model.patch": 4, "model.stride": 4, "model.horizons": "1,2,5",
}  # fmt: skip


def train(*files, out, **settings):
    flags = {**SMALL, "out": out, **settings}
    return ["train", "price", *map(str, files), *(f"--{name}={value}" for name, value in flags.items())]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write(ohlcv(500), tmp_path_factory.mktemp("prices") / "prices.csv")


@pytest.fixture(scope="module")
def told(tmp_path_factory, file):
    """A trained run's folder, and what the command printed."""
    out, shown = tmp_path_factory.mktemp("runs") / "run", io.StringIO()
    with contextlib.redirect_stdout(shown):
        assert main(train(file, out=out)) == 0
    return out, shown.getvalue()


@pytest.fixture
def trained(told):
    return told[0]


def test_train_price_prints_the_data_the_test_and_the_baselines(told):
    _, shown = told
    for words in (
        "500 rows",
        "test",
        "parameters",
        "standard+swiglu",
        "unconditional",
        "EWMA(0.94)",
        "GARCH-t",
        "h = 5",
    ):
        assert words in shown
    assert re.search(r"(not calibrated|calibrated on \d+ validation origins)", shown)


def test_a_run_folder_holds_all_that_using_it_takes(trained):
    names = set(os.listdir(trained))
    assert {"config.yaml", "metrics.jsonl", "checkpoints", "prices.json", "evaluation.json", "fan.png"} <= names
    found = json.loads((trained / "evaluation.json").read_text())
    assert found["horizons"] == [1, 2, 5] and "GARCH-t" in found["forecasts"]
    model, assets, run = load_run(trained)
    assert len(assets.features) == 20 and run.task == "price" and model.config.features == assets.features


def test_resuming_a_finished_run_changes_nothing(trained):
    before = (trained / "evaluation.json").read_text()
    assert main(["train", "price", "--out", str(trained), "--resume"]) == 0
    assert (trained / "evaluation.json").read_text() == before


def test_a_preset_is_laid_below_what_is_given(tmp_path, file, capsys):
    """All of the document's layout, made small enough by options that win over the preset."""
    words = train(file, out=tmp_path / "run", **{"train.steps": 1})
    assert main([*words, "--preset", "tiny", "--model.pattern", "mla[kv_rank=4,rope=full]+swiglu[d_ff=8]"]) == 0
    _, _, run = load_run(tmp_path / "run")
    assert (run.model.layout, run.model.d_model, run.model.instance, run.train.lr) == ("day", 8, "none", 1e-4)
    assert run.model.layers[0].attn == "mla"
    # How long it takes is told before the first step; without a preset nothing is.
    told = capsys.readouterr().err
    assert re.search(r"^about .* on \d+ threads?: 1 steps of .*, 1 evaluation of .*, calibration and test", told, re.M)


def test_forecast_writes_a_tidy_table_and_a_plot(trained, file, tmp_path, capsys):
    out = tmp_path / "deep" / "f.csv"
    assert main(["forecast", str(trained), file, "--out", str(out)]) == 0
    frame = pd.read_csv(out)
    assert frame["horizon"].tolist() == [1, 2, 5] and {"unique_id", "cutoff", "ds", "last", "price", "q0.05"} <= set(
        frame
    )
    assert (frame["q0.05"] < frame["q0.95"]).all()
    assert out.with_suffix(".png").stat().st_size > 5000
    assert str(out) in capsys.readouterr().out


def test_forecasts_of_many_assets_as_parquet_from_a_date(trained, tmp_path):
    long = pd.concat([ohlcv(300, seed).assign(unique_id=name) for seed, name in enumerate("XYZ")])
    path, out = write(long, tmp_path / "long.csv"), tmp_path / "f.parquet"
    assert main(["forecast", str(trained), path, "--out", str(out), "--at", "2015-12-31", "--plot", "none"]) == 0
    frame = pd.read_parquet(out)
    assert frame["unique_id"].unique().tolist() == ["X", "Y", "Z"] and len(frame) == 9
    assert frame["cutoff"].astype(str).str.startswith("2015-12-31").all()
    assert not out.with_suffix(".png").exists()


def test_backtest_walks_forward_beside_baselines(trained, file, tmp_path, capsys):
    out = tmp_path / "bt"
    assert main(["backtest", str(trained), file, "--folds", "2", "--out", str(out), "--rule", "volatility"]) == 0
    shown = capsys.readouterr().out
    assert "Sharpe" in shown and "random walk" in shown and "lag 1" in shown
    earned = json.loads((out / "backtest.json").read_text())
    assert {"standard+swiglu", "GARCH-t"} <= set(earned) and len(earned["GARCH-t"]["curve"]) == earned["GARCH-t"][
        "steps"
    ]
    assert (out / "skill.png").exists() and (out / "pit.png").exists()
    assert re.search(r"\nSharpe −?\d+\.\d\d\u00a0\[.*buy and hold", shown) and shown.endswith(f"{out}\n")
    page = (out / "tearsheet.html").read_text()
    assert f"blockyard backtest {trained} {file} --folds 2 --rule volatility --out {out}" in page.replace(
        '<span class="nw">', ""
    ).replace("</span>", "")
    held = pd.read_csv(out / "weights.csv")
    assert (pd.to_datetime(held["decided"]) < pd.to_datetime(held["taken"].fillna("2100"))).all()
    assert json.loads((out / "settings.json").read_text())["config"]["rule"] == "volatility"


def test_backtests_of_several_assets_by_rank_keep_to_their_limits(trained, tmp_path, capsys):
    long = pd.concat([ohlcv(500, seed).assign(unique_id=name) for seed, name in enumerate("VWXYZ")])
    path, out = write(long, tmp_path / "long.csv"), tmp_path / "bt"
    words = ["backtest", str(trained), path, "--folds", "2", "--rule", "rank", "--target_volatility", "0.1"]
    assert main([*words, "--gross", "0.8", "--net", "0.1", "--out", str(out)]) == 0
    assert "rule rank, tails 0.2" in capsys.readouterr().out
    held = pd.read_csv(out / "weights.csv").groupby("decided")["weight"]
    assert (held.apply(lambda w: w.abs().sum()) <= 0.8 + 1e-6).all()
    assert (held.sum().abs() <= 0.1 + 1e-6).all() and held.apply(lambda w: (w != 0).sum()).max() == 2
    assert "mean of the last" in (out / "tearsheet.html").read_text()


def test_a_second_backtest_with_other_settings_leaves_the_first(trained, file, capsys):
    for rule, name in (("sign", "backtest"), ("volatility", "backtest-2"), ("sign", "backtest")):
        assert main(["backtest", str(trained), file, "--folds", "1", "--rule", rule]) == 0
        assert capsys.readouterr().out.endswith(f"{trained / name}\n")
    assert not (trained / "backtest-3").exists()


def test_a_rank_of_one_asset_is_refused_before_anything_is_done(trained, file, tmp_path, capsys):
    out = str(tmp_path / "bt")
    assert "rule=rank orders assets, and" in error_of(
        capsys, "backtest", str(trained), file, "--rule", "rank", "--out", out
    )
    assert "gross=0.0 should be" in error_of(capsys, "backtest", str(trained), file, "--gross", "0", "--out", out)
    assert not os.path.exists(out)


def test_backtest_can_train_anew_before_each_fold(trained, file, tmp_path, capsys):
    out = tmp_path / "bt"
    assert main(["backtest", str(trained), file, "--folds", "2", "--retrain", "--out", str(out)]) == 0
    ends = []
    for number in (1, 2):
        assets = json.loads((out / f"fold-{number}" / "prices.json").read_text())
        ends.append(assets["val_end"])
    assert ends[0] < ends[1]
    first = json.loads((out / "evaluation.json").read_text())["span"][0]
    assert ends[0] < first


def test_backtest_says_when_dates_were_used_in_training(trained, file, tmp_path, capsys):
    words = ["backtest", str(trained), file, "--out", str(tmp_path / "bt"), "--folds", "1"]
    assert main([*words, "--from", "2015-09-01"]) == 0
    assert "were used in training" in capsys.readouterr().out
    early = write(ohlcv(300), tmp_path / "early.csv")
    message = error_of(capsys, "backtest", str(trained), early, "--out", str(tmp_path / "b2"))
    assert "training used dates up to" in message and "--from DATE" in message


def test_compare_price_reports_choices_and_baselines_together(file, tmp_path):
    flags = {
        name: value
        for name, value in SMALL.items()
        if name not in ("train.steps", "train.eval_every", "train.progress")
    }
    words = [
        "compare",
        "price",
        "--blocks",
        "standard;tva",
        "--match",
        "none",
        "--seeds",
        "1",
        "--measure_memory",
        "false",
    ]
    words += ["--budget.value", "32", "--evaluations", "2", "--data.path", file, "--out", str(tmp_path / "c")]
    assert main([*words, *(f"--{name}={value}" for name, value in flags.items())]) == 0
    report = json.loads((tmp_path / "c" / "report.json").read_text())
    assert report["task"] == "price" and report["input_unit"] == "window"
    assert set(report["quality"]["baselines"]["forecasts"]) >= {"random walk", "EWMA(0.94)", "GARCH-t"}
    test = report["choices"][1]["runs"][0]["figures"]["test"]
    assert next(iter(test["forecasts"].values()))["skill"][0]["value"] is not None
    page = (tmp_path / "c" / "report.html").read_text()
    for words in (
        "The test, beside baselines",
        "Skill over time, h = 1",
        "Calibration, h = 1",
        "Pinball skill less that of others, on the same dates",
        "CRPS skill less that of others, on the same dates",
        "beside GJR-GARCH-t",
        "Tenths of the forecast, h = 1",
        "A forecast of",
        "HistVol20",
    ):
        assert words in page
    assert "<script" not in page and "http" not in page


def test_the_same_command_trains_the_same_model(trained, file, tmp_path):
    assert main(train(file, out=tmp_path / "again")) == 0
    assert (tmp_path / "again" / "evaluation.json").read_text() == (trained / "evaluation.json").read_text()


BAD = {
    "one row": (lambda f: f[:1], "has 1 row, too few"),
    "constant": (lambda f: f.assign(Close=5.0, Open=5.0, High=5.0, Low=5.0), "every price is 5"),
    "all NaN": (lambda f: f.assign(Close=np.nan), "column Close: no row has a price"),
    "duplicate": (
        lambda f: pd.concat([f[:200], f[199:]]),
        "row 201 (2015-10-07), column Date: the date stands in row 200",
    ),
    "unsorted": (lambda f: pd.concat([f[:10], f[20:], f[10:20]]), "column Date: comes after"),
    "gap": (
        lambda f: pd.concat([f[:100], f[200:]]),
        "row 101 (2015-10-08), column Date: 141 days after the row before",
    ),
    "negative": (
        lambda f: f.assign(Close=f["Close"].where(f.index != 41, -1.0)),
        "row 42 (2015-02-27), column Close: -1",
    ),
    "short": (lambda f: f[:90], "at least 81 are needed"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_file_is_one_line_and_status_2(case, tmp_path, capsys):
    change, words = BAD[case]
    path = write(change(ohlcv(500)), tmp_path / "bad.csv")
    message = error_of(capsys, *train(path, out=tmp_path / "run"))
    assert (words in message or (case == "short" and "window fits" in message)) and "bad.csv" in message
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_other_mistakes_are_one_line_and_status_2(trained, file, tmp_path, capsys):
    out = str(tmp_path / "f.csv")
    assert "which run?" in error_of(capsys, "forecast")
    assert "does not exist" in error_of(capsys, "forecast", str(trained), str(tmp_path / "none.csv"), "--out", out)
    assert "should end in .csv or .parquet" in error_of(capsys, "forecast", str(trained), file, "--out", "f.txt")
    assert "'open'" not in error_of(capsys, "forecast", str(tmp_path), file, "--out", out)
    closes = write(ohlcv(300)[["Date", "Close"]], tmp_path / "closes.csv")
    assert "feature 'gap' needs columns that closes has not" in error_of(
        capsys, "forecast", str(trained), closes, "--out", out
    )
    assert "--folds=0" in error_of(capsys, "backtest", str(trained), file, "--folds", "0")
    assert "horizon=7 is not forecast" in error_of(
        capsys, "backtest", str(trained), file, "--horizon", "7", "--out", out
    )
    assert "(did you mean" in error_of(capsys, "train", "price", file, "--model.layuot", "day")


def test_help_names_the_task_s_own_defaults(capsys):
    assert main(["train", "price", "--help"]) == 0
    assert "--preset" in capsys.readouterr().out
    assert main(["train", "price", "--help", "all"]) == 0
    shown = capsys.readouterr().out
    assert "--preset" in shown and "0.0003" in shown and "--data.embargo" in shown


def test_help_of_compare_names_a_budget_that_does_not_only_measure_overfitting(capsys):
    assert main(["compare", "price", "--help"]) == 0
    assert "40000" in capsys.readouterr().out.replace(",", "")


def test_data_prices_says_what_is_understood_and_does_nothing_else(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    frame = ohlcv(60).rename(columns={"Close": "Schluss"})
    frame["Date"] = frame["Date"].dt.strftime("%d.%m.%Y")
    frame.to_csv("kurse.csv", index=False, sep=";", decimal=",")
    assert main(["data", "prices", "kurse.csv"]) == 0
    shown = capsys.readouterr().out
    for words in (
        "kurse.csv: 1 asset, 60 rows",
        "cells between semicolons; decimal comma",
        "date from Date, close from Schluss",
        "clock: the file's own; it names no time zone",
        "step: 1 day, Mon–Fri; no holes",
        "2015-01-01 … 2015-03-25",
    ):
        assert words in shown
    assert os.listdir() == ["kurse.csv"]
    assert main(["data", "prices", "kurse.csv", "--json"]) == 0
    (asset,) = json.loads(capsys.readouterr().out)["assets"]
    assert (asset["rows"], asset["first"], asset["step"]) == (60, "2015-01-01", "1 day, Mon–Fri; no holes")
    assert main(["data", "prices", "kurse.csv", "--data.price_column", "Open"]) == 0
    assert "close from Open" in capsys.readouterr().out
    assert "no column 'Shluss' (did you mean 'Schluss'?)" in error_of(
        capsys, "data", "prices", "kurse.csv", "--data.price_column", "Shluss"
    )
    assert "kurze.csv does not exist" in error_of(capsys, "data", "prices", "kurze.csv")


def test_training_says_what_data_prices_says(told, file, capsys):
    assert main(["data", "prices", file]) == 0
    assert capsys.readouterr().out in told[1]


def test_tables_of_forecasts_are_on_the_clock_of_the_file(trained, tmp_path):
    """Hours around the clock with offsets: the origin's date is the last row's as it is written."""
    frame = ohlcv(200)
    hours = pd.date_range("2024-01-01", periods=200, freq="h", tz="Asia/Tokyo")
    frame["Date"] = [hour.isoformat(sep=" ") for hour in hours]
    file, out = write(frame, tmp_path / "hours.csv"), tmp_path / "f.csv"
    assert main(["forecast", str(trained), file, "--out", str(out), "--plot", "none"]) == 0
    found = pd.read_csv(out)
    last = hours[-1].tz_localize(None)
    assert set(found["cutoff"]) == {str(last)}
    assert found["ds"].tolist() == [str(last + pd.Timedelta(hours=h)) for h in (1, 2, 5)]
