"""Columns beside prices: known in advance, of the asset, in units of price; from the file to the forecast."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from blockyard.errors import InputError
from blockyard.tasks.kind import Run
from blockyard.tasks.price.data.config import PriceDataConfig
from blockyard.tasks.price.data.covariates import covariate, scale_of
from blockyard.tasks.price.data.features import available, feature_table
from blockyard.tasks.price.data.leakage import lookahead, perturb_future, perturb_known
from blockyard.tasks.price.data.reader import read_prices
from blockyard.tasks.price.data.table import Asset, Prices
from blockyard.tasks.price.data.windows import PriceData
from blockyard.tasks.price.forecaster import future_table, load_forecaster
from blockyard.tasks.price.model import PriceConfig, PriceForecaster
from blockyard.tasks.run import train
from tests.fixtures.prices import asset, ohlcv

HORIZONS = (1, 2, 5)
SMALL = {
    "model": {"d_model": 8, "n_layers": 1, "n_heads": 2, "context": 16, "horizons": list(HORIZONS)},
    "train": {"steps": 4, "batch_size": 8, "eval_batches": 1, "compile": "off", "progress": False},
}


def panel(rows: int = 320, ahead: int = 8, assets: str = "ABC") -> pd.DataFrame:
    """Assets one after the other, with an event every 17 days that is known for `ahead` days more than prices are."""
    frames = []
    for number, name in enumerate(assets):
        frame = ohlcv(rows, number)[["Date", "Close"]]
        later = pd.DataFrame({"Date": pd.bdate_range(frame["Date"].iloc[-1], periods=ahead + 1)[1:]})
        frame = pd.concat([frame, later], ignore_index=True)
        days = np.arange(len(frame))
        frames.append(frame.assign(ticker=name, event=(days % 17 == 3).astype(int),
                                   sector="Tech" if number % 2 == 0 else "Energy", beta=1.0 + number / 10))  # fmt: skip
    return pd.concat(frames, ignore_index=True)


KNOWN = PriceDataConfig(future="event", static="sector,beta", val_fraction=0.2, test_fraction=0.25)


def test_rows_after_the_last_price_are_known_in_advance() -> None:
    prices = read_prices(panel(), KNOWN)
    assert [len(asset) for asset in prices.assets] == [320, 320, 320] and prices.notes == ()
    one = prices.assets[1]
    assert one.ahead is not None and len(one.ahead) == 8 and one.ahead[0] > one.ds[-1]
    assert one.future["event"].tolist() == [float(day % 17 == 3) for day in range(328)]
    assert one.static == {"sector": "Energy", "beta": 1.1} and one.categories == {"sector": ("Energy", "Tech")}
    assert "known in advance: event, for 8 steps after the last row; sector Energy, beta 1.1" in prices.report()
    # From new to old likewise; a row without a price between others is left out, and the rest stays.
    turned = panel()[::-1].reset_index(drop=True)
    turned.loc[turned["Date"] == pd.Timestamp("2015-02-02"), "Close"] = np.nan
    again = read_prices(turned, KNOWN)
    assert [len(asset) for asset in again.assets] == [319] * 3
    assert again["B"].future["event"].sum() == one.future["event"].sum()
    assert again["B"].ahead is not None and len(again["B"].ahead) == 8
    assert any("1 row without a price is left out between others" in note for note in again.notes)


def test_a_feature_of_the_future_is_the_mean_over_the_steps_of_its_horizon() -> None:
    one = read_prices(panel(), KNOWN).assets[0]
    names = [name for name in available(one, HORIZONS) if "event" in name]
    assert names == ["event@0", "event@1", "event@2", "event@3-5"]
    table = feature_table(one, names)
    values = one.future["event"]
    for t in (70, 200, 319):
        assert table.values[t].tolist() == [values[t], values[t + 1], values[t + 2], values[t + 3 : t + 6].mean()]
    short = replace(one, future={"event": values[:322]}, ahead=None)
    assert np.isnan(feature_table(short, names).values[319]).tolist() == [False, False, False, True]


def test_only_columns_known_in_advance_look_ahead_and_by_their_own_values_alone() -> None:
    one = read_prices(panel(), KNOWN).assets[0]
    one = replace(one, extra={"lot": np.random.default_rng(0).standard_normal(320), "upper": one.close * 1.01,
                              "atr": one.close * 0.02}, scales={"upper": "level", "atr": "size"})  # fmt: skip

    def columns(some: Asset) -> dict[str, np.ndarray]:
        table = feature_table(some, available(some, HORIZONS))
        return {name: table.values[:, k] for k, name in enumerate(table.names)} | {"unit": table.unit(HORIZONS)}

    before = columns(one)
    assert {"lot", "log(upper/close)", "atr/close", "event@3-5", "sector=Tech", "beta"} < set(before)
    assert lookahead(columns, one) == []
    after = columns(perturb_known(one, 200))
    changed = {n for n, v in before.items() if not np.array_equal(v[:201], after[n][:201], equal_nan=True)}
    assert changed == {"event@1", "event@2", "event@3-5"}
    assert all(np.array_equal(v[:196], after[n][:196], equal_nan=True) for n, v in before.items())


def test_a_forecast_sees_what_is_known_and_nothing_else_of_later_rows(tmp_path: Path) -> None:
    panel().to_csv(tmp_path / "p.csv", index=False)
    data = {"path": [str(tmp_path / "p.csv")], "future": "event", "static": "sector,beta", "val_fraction": 0.2,
            "test_fraction": 0.25}  # fmt: skip
    folder = train({**SMALL, "data": data}, tmp_path / "run", task="price")
    forecaster, assets, run = load_forecaster(folder)
    assert isinstance(run, Run) and run.data.future == "event"
    assert assets.known == ("event@0", "event@1", "event@2", "event@3-5", "sector=Energy", "sector=Tech", "beta")
    assert forecaster.config.known == assets.known
    # After four steps the readout hardly moves: what it reads is made larger, so that every input shows.
    with torch.no_grad():
        for part in (forecaster.model.readout, forecaster.model.shortcut):
            part.weight.normal_(generator=torch.Generator().manual_seed(0))
    whole = read_prices(None, run.data)
    last = future_table(forecaster, whole)
    one = whole.assets[0]
    ahead = pd.bdate_range(one.ds[-1], periods=6)
    assert last["ds"].tolist() == ahead[[1, 2, 5]].tolist() * 3
    at = str(one.ds[250])[:10]
    base = future_table(forecaster, whole, at)
    other = replace(whole, assets=tuple(perturb_future(a, 250) for a in whole.assets))
    assert future_table(forecaster, other, at).equals(base)
    known = replace(whole, assets=tuple(perturb_known(a, 250) for a in whole.assets))
    assert not np.allclose(future_table(forecaster, known, at)["price"], base["price"], rtol=1e-6)
    late = replace(whole, assets=tuple(perturb_known(a, 255) for a in whole.assets))
    assert future_table(forecaster, late, at).equals(base)
    # Statics are inputs, and one that training had not is refused.
    moved = replace(whole, assets=tuple(replace(a, static={**a.static, "sector": "Energy"}) for a in whole.assets))
    assert not np.allclose(future_table(forecaster, moved, at)["price"], base["price"], rtol=1e-6)
    bank = replace(whole, assets=(replace(one, static={**one.static, "sector": "Bank"}),))
    with pytest.raises(InputError, match=r"sector of A is 'Bank', which training had not: Energy, Tech"):
        future_table(forecaster, bank, at)


def test_a_forecast_without_the_rows_ahead_says_what_is_missing(tmp_path: Path) -> None:
    panel().to_csv(tmp_path / "p.csv", index=False)
    data = {"path": [str(tmp_path / "p.csv")], "future": "event", "val_fraction": 0.2, "test_fraction": 0.25}
    folder = train({**SMALL, "data": data}, tmp_path / "run", task="price")
    forecaster, _, run = load_forecaster(folder)
    for ahead in (0, 4):
        short = read_prices(panel(ahead=ahead), run.data)
        with pytest.raises(InputError, match=rf"A has {ahead} rows after .* with values of event, .* for 5 steps; add"):
            future_table(forecaster, short)
    sparse = panel(ahead=40, assets="A")
    sparse = sparse[(sparse.index < 320) | (sparse.index % 7 == 0)]
    with pytest.raises(InputError, match=r"are not those of its next 5 steps, from .* on; give event for every step"):
        future_table(forecaster, read_prices(sparse, run.data))
    # One holiday among them is the file's to know.
    closed = panel(ahead=9, assets="A").drop(index=[321])
    found = future_table(forecaster, read_prices(closed, run.data))
    assert found["ds"].tolist() == closed["Date"].iloc[[320, 321, 324]].tolist()


def test_what_is_known_is_not_normalised_away() -> None:
    """A static is the same all over a window, so that a window's own mean would leave nothing of it."""
    names = ("return_1", "volatility_20", "volatility_60", "beta")
    for layout in ("patch", "day"):
        shape: dict[str, Any] = {"context": 16, "n_heads": 2, "d_model": 8, "n_layers": 1, "layout": layout}
        for known, same in (((), True), (("beta",), False)):
            model = PriceForecaster(PriceConfig(features=names, known=known, **shape)).eval()
            with torch.no_grad():
                model.readout.weight.normal_()
                model.shortcut.weight.normal_()
            x = torch.randn(2, 16, 4) * 0.1
            x[..., 3] = torch.tensor([[0.5], [1.5]])
            x[1, :, :3] = x[0, :, :3]
            point = model(x).point
            assert torch.allclose(point[0], point[1], atol=1e-5) is same


SHAPES = {
    "band": (lambda p, d: p * (1 + 0.02 * d.random(len(p))), "level"),
    "average": (lambda p, d: pd.Series(p).rolling(20, min_periods=1).mean().to_numpy(), "level"),
    "in cents": (lambda p, d: 100 * p, "size"),
    "range": (lambda p, d: 0.02 * p * np.exp(0.3 * d.standard_normal(len(p))), "size"),
    "change": (lambda p, d: np.round(np.diff(p, prepend=p[0]), 4), "change"),
    "share": (lambda p, d: d.random(len(p)), None),
    "index of its own": (lambda p, d: 50 * np.exp(np.cumsum(0.01 * d.standard_normal(len(p)))), None),
    "mood": (lambda p, d: d.standard_normal(len(p)), None),
    "volume": (lambda p, d: np.round(1e6 * np.exp(0.3 * d.standard_normal(len(p)))), None),
    "constant": (lambda p, d: np.full(len(p), 7.0), None),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_columns_in_units_of_price_are_recognised(shape: str) -> None:
    make, scale = SHAPES[shape]
    draw = np.random.default_rng(1)
    price = 100 * np.exp(np.cumsum(0.0015 + 0.01 * draw.standard_normal(1000)))
    assert scale_of(make(price, np.random.default_rng(2)), price) == scale


def test_columns_in_units_of_price_become_free_of_it_and_say_so() -> None:
    frame = ohlcv(400)
    draw = np.random.default_rng(0)
    frame = frame.assign(upper=frame["Close"] * (1 + 0.02 * draw.random(400)), change=frame["Close"].diff().fillna(0.0),
                         mood=draw.standard_normal(400))  # fmt: skip
    prices = read_prices(frame)
    assert prices.notes == (
        "upper stays near the price: its feature is log(upper/close)",
        "change is the price's own change, which return_1 says, and is left out",
    )
    names = available(prices.assets[0])
    assert [n for n in names if n not in available(asset(100))] == ["log(upper/close)", "mood"]
    # A tenfold price is the same to every feature.
    tenfold = frame.assign(**{n: 10 * frame[n] for n in ("Open", "High", "Low", "Close", "upper", "change")})
    a, b = (feature_table(read_prices(one).assets[0]) for one in (frame, tenfold))
    assert a.names == b.names and np.allclose(a.values[60:], b.values[60:], rtol=1e-7, atol=1e-9)
    # Beside adjusted prices the column is in the units of the unadjusted ones.
    adjusted = frame.assign(**{"Adj Close": frame["Close"] * np.linspace(0.5, 1.0, 400)})
    found = feature_table(read_prices(adjusted).assets[0], ["log(upper/close)"]).values[60:, 0]
    assert np.allclose(found, np.log(frame["upper"] / frame["Close"])[60:])
    # A run of before has the column as it stands.
    assert np.array_equal(covariate(prices.assets[0], "upper"), frame["upper"])


REFUSED = {
    "no such column": (lambda f: f, {"future": "evnt"}, r"data\.future: .* has no column 'evnt' \(did you mean 'ev"),
    "a price": (lambda f: f, {"future": "Close"}, r"column 'Close' of .* is a date, a name or a price already"),
    "words": (lambda f: f, {"future": "sector"}, r"data\.future: column 'sector' of .* is not of numbers"),
    "named twice": (lambda f: f, {"future": "event", "static": "event"}, "'event' is named in data.future, too"),
    "a hole": (
        lambda f: f.assign(event=f["event"].where(f.index != 9)), {"future": "event"}, r"row 10 .*column event: the val"
    ),
    "changing": (
        lambda f: f.assign(beta=np.where(f.index == 9, 3.0, f["beta"])), {"static": "beta"},
        r"row 10 .*column beta: 3\.0 comes after 1\.0; data\.static takes one value per asset",
    ),
    "wide": (
        lambda f: pd.DataFrame({"Date": f["Date"][:300], "A": f["Close"][:300], "B": f["Close"][:300], "s": "x"}),
        {"static": "s"}, "has columns for each asset, where a row per asset and date is needed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_covariate_is_one_line(case: str) -> None:
    change, options, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        read_prices(change(panel()), PriceDataConfig(**options))


def test_columns_known_in_advance_are_shared_by_tables_with_a_column_per_asset() -> None:
    frame = panel(assets="A")
    wide = frame[["Date", "event"]].assign(AA=frame["Close"], BB=frame["Close"] * 2)
    prices = read_prices(wide, PriceDataConfig(future="event"))
    assert [a.unique_id for a in prices.assets] == ["AA", "BB"]
    assert all(len(a) == 320 and len(a.future["event"]) == 328 for a in prices.assets)


def test_data_that_say_little_say_so() -> None:
    def notes(rows: int, wild: float = 1.0, **options: Any) -> tuple[str, ...]:
        one = asset(rows)
        r = np.diff(np.log(one.close), prepend=np.log(one.close[0]))
        late = np.arange(rows) > rows * 0.8
        one = Asset("A", one.ds, 100 * np.exp(np.cumsum(np.where(late, wild * r, r))))
        return PriceData(Prices((one,), "x"), PriceDataConfig(**options), context=16, horizons=(1, 5)).notes

    assert notes(1200) == ()
    (few,) = notes(400)
    assert few == "400 rows are few (400 in all): below 1,000 EWMA or GARCH do as well"
    assert any("validation origins choose the checkpoint: below 30" in note for note in notes(400, val_fraction=0.05))
    (wilder,), (calmer,) = notes(1200, 2.0), notes(1200, 0.4)
    assert wilder.startswith("the test span is wilder than training: its steps are 2.")
    assert calmer.startswith("the test span is calmer than training: its steps are 0.4")
