"""Reading prices: the usual spellings and containers, and one clear line for each thing that can be wrong."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from blockyard.errors import InputError
from blockyard.tasks.price.data.checks import jumps_like_splits
from blockyard.tasks.price.data.config import PriceDataConfig
from blockyard.tasks.price.data.reader import read_prices
from tests.fixtures.prices import ohlcv, write


def real_file(name: str) -> str:
    roots = [Path(os.environ["BLOCKYARD_SHARED"])] if "BLOCKYARD_SHARED" in os.environ else []
    roots += [parent / "shared" for parent in Path(__file__).resolve().parents]
    for root in roots:
        if (root / "data" / name).is_file():
            return str(root / "data" / name)
    pytest.skip(f"{name} is not here: set BLOCKYARD_SHARED to the folder that holds data/{name}")


def refusal(frame, tmp_path, **options) -> str:
    """The error for a frame, as a file and as itself: both say the same but for the name."""
    path = write(frame, tmp_path / "f.csv")
    with pytest.raises(InputError) as from_file:
        read_prices(path, PriceDataConfig(**options), least=30)
    assert "\n" not in str(from_file.value)
    with pytest.raises(InputError) as from_frame:
        read_prices(frame, PriceDataConfig(**options), least=30)
    said = str(from_file.value).replace(path, "f.csv")
    if ": row" in said:  # rows are named alike whichever way the table came
        assert str(from_frame.value).split(": ", 1)[-1][:12] == said.split(": ", 1)[-1][:12]
    return said


@pytest.mark.parametrize("names", [
    {"Date": "date", "Close": "close", "Open": "OPEN", "Volume": "vol"},
    {"Date": "Timestamp", "Close": "Close/Last"},
    {"Date": "ds", "Close": "y"},
    {"Date": "trade_date", "Close": "Price", "High": "high_price"},
    {"Date": "日期", "Close": "收盘", "Open": "开盘", "High": "最高", "Low": "最低", "Volume": "成交量"},
])  # fmt: skip
def test_columns_are_found_under_their_usual_spellings(names, tmp_path):
    frame = ohlcv(100)
    asset = read_prices(write(frame.rename(columns=names), tmp_path / "f.csv")).assets[0]
    assert np.allclose(asset.close, frame["Close"]) and asset.dated
    assert all(getattr(asset, bar) is not None for bar in ("open", "high", "low", "volume"))
    assert asset.extra == {}


CONTAINERS = ["csv", "csv.gz", "csv.bz2", "csv.xz", "csv.zip", "parquet", "pandas", "index", "polars", "tsv", "tsv.gz"]


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_gives_the_same_prices(container, tmp_path):
    frame = ohlcv(80)
    path = tmp_path / f"f.{container}"
    if container == "parquet":
        frame.to_parquet(path)
    elif container == "polars":
        polars = pytest.importorskip("polars", reason="polars is not installed")
        path = polars.DataFrame({name: frame[name].to_numpy() for name in frame})
    elif container == "pandas":
        path = frame
    elif container == "index":
        path = frame.set_index("Date")
    else:
        frame.to_csv(path, index=False, sep="\t" if container.startswith("tsv") else ",")
    asset = read_prices(path).assets[0]
    assert np.allclose(asset.close, frame["Close"], rtol=1e-12)
    assert (asset.ds == frame["Date"].to_numpy("datetime64[ns]")).all()


@pytest.mark.parametrize("codec", ["gzip", "bz2", "zstd"])
def test_a_compressed_file_is_known_by_its_bytes_whatever_its_name_and_luck(codec, tmp_path):
    """Compressed bytes that hold a semicolon or none must not decide what separates cells."""
    frame = ohlcv(80)
    for number in range(4):
        path = tmp_path / f"{number}.csv"
        content = frame.iloc[number:].to_csv(index=False, sep=",;\t|"[number])
        with pa.CompressedOutputStream(pa.OSFile(str(path), "w"), codec) as file:
            file.write(content.encode())
        assert np.allclose(read_prices(path).assets[0].close, frame["Close"].iloc[number:], rtol=1e-12)


def test_an_archive_of_several_files_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "f.zip", "w") as archive:
        archive.writestr("a.csv", "Date,Close\n")
        archive.writestr("b.csv", "Date,Close\n")
    with pytest.raises(InputError, match=r"f\.zip is an archive of 2 files; unpack it"):
        read_prices(tmp_path / "f.zip")


def test_a_damaged_compressed_file_is_one_line(tmp_path):
    path = tmp_path / "f.csv.gz"
    ohlcv(80).to_csv(path, index=False)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"f\.csv\.gz cannot be read as CSV: "):
        read_prices(path)


def test_a_long_table_of_many_assets_is_taken_apart(tmp_path):
    frames = [ohlcv(60, seed).assign(unique_id=name) for seed, name in enumerate("XYZ")]
    mixed = pd.concat(frames).sort_values(["Date", "unique_id"]).rename(columns={"Date": "ds", "Close": "y"})
    found = read_prices(write(mixed, tmp_path / "f.csv"))
    assert [asset.unique_id for asset in found.assets] == ["X", "Y", "Z"]
    for asset, frame in zip(found.assets, frames):
        assert np.allclose(asset.close, frame["Close"])


def test_several_files_are_assets_named_by_their_files(tmp_path):
    paths = [write(ohlcv(60, seed), tmp_path / f"{name}.csv") for seed, name in enumerate(("AAA", "BBB"))]
    assert [a.unique_id for a in read_prices(paths).assets] == ["AAA", "BBB"]


def test_adjusted_closes_are_preferred_and_bars_are_adjusted_alike(tmp_path):
    frame = ohlcv(100)
    frame["Adj Close"] = frame["Close"].copy()
    frame.loc[frame.index[:50], ["Open", "High", "Low", "Close"]] *= 2
    asset = read_prices(write(frame, tmp_path / "f.csv")).assets[0]
    assert np.allclose(asset.close, frame["Adj Close"])
    assert np.allclose(asset.high / asset.close, frame["High"] / frame["Close"])


def test_further_columns_become_extras_or_not_as_asked(tmp_path):
    frame = ohlcv(60).assign(turnover=np.arange(60.0), sector="tech", rate=1.5)
    path = write(frame, tmp_path / "f.csv")
    assert list(read_prices(path).assets[0].extra) == ["turnover", "rate"]
    assert list(read_prices(path, PriceDataConfig(extra="rate")).assets[0].extra) == ["rate"]
    assert read_prices(path, PriceDataConfig(extra="none")).assets[0].extra == {}
    with pytest.raises(InputError, match=r"no further column 'turnovr' \(did you mean 'turnover'\?\)"):
        read_prices(path, PriceDataConfig(extra="turnovr"))


def test_rows_without_dates_are_numbered():
    asset = read_prices(ohlcv(60).drop(columns="Date")).assets[0]
    assert not asset.dated and asset.ds.tolist() == list(range(60))


def test_whole_numbers_like_20240131_are_dates(tmp_path):
    frame = ohlcv(60)
    frame["Date"] = frame["Date"].dt.strftime("%Y%m%d").astype(int)
    assert read_prices(write(frame, tmp_path / "f.csv")).assets[0].ds[0] == np.datetime64("2015-01-01")


def test_the_report_is_readable():
    text = read_prices(ohlcv(60)).report()
    assert "60 rows" in text and "2015-01-01 … 2015-03-25" in text and "close, open, high, low, volume" in text


def spoil(row, column, value):
    def change(frame):
        frame[column] = frame[column].astype(object)
        frame.loc[row, column] = value
        return frame

    return change


WRONG = {
    "one row": (lambda f: f[:1], "f.csv has 1 row, too few: at least 30 are needed"),
    "no rows": (lambda f: f[:0], "f.csv has no rows; at least 30 are needed"),
    "constant": (
        lambda f: f.assign(Close=7.0, Open=7.0, High=7.0, Low=7.0),
        "f.csv, column Close: every price is 7, there is nothing to forecast",
    ),
    "all NaN": (lambda f: f.assign(Close=np.nan), "f.csv, column Close: no row has a price"),
    "missing price": (spoil(16, "Close", None), "row 17 (2015-01-23), column Close: the price is missing, though Open"),
    "negative": (spoil(16, "Close", -3.5), "f.csv: row 17 (2015-01-23), column Close: -3.5 is not a price above 0"),
    "zero high": (spoil(4, "High", 0), "f.csv: row 5 (2015-01-07), column High: 0 is not a price above 0"),
    "text": (spoil(9, "Close", "12,5"), "f.csv: row 10 (2015-01-14), column Close: '12,5' is not a number"),
    "duplicate": (
        lambda f: pd.concat([f[:20], f[19:]]),
        "f.csv: row 21 (2015-01-28), column Date: the date stands in row 20 already; several assets need a column",
    ),
    "unsorted": (
        lambda f: pd.concat([f[:10], f[20:], f[10:20]]),
        "f.csv: row 51 (2015-01-15), column Date: comes after 2015-03-25; sort the rows by date, or pass",
    ),
    "gap": (
        lambda f: pd.concat([f[:10], f[35:]]),
        "f.csv: row 11 (2015-02-19), column Date: 36 days after the row before (2015-01-14), where 1 is usual",
    ),
    "bad date": (spoil(5, "Date", "soon"), "f.csv: row 6 (soon), column Date: 'soon' is not a date like the first"),
    "no date": (spoil(5, "Date", None), "f.csv: row 6, column Date: the date is missing"),
    "low above high": (spoil(7, "Low", 1e4), "f.csv: row 8 (2015-01-12), column Low: low 10000 is above high"),
    "negative volume": (spoil(3, "Volume", -1), "f.csv: row 4 (2015-01-06), column Volume: -1 is not a volume"),
    "split": (
        lambda f: f.assign(**{c: f[c] / np.where(f.index < 40, 1, 2) for c in ("Open", "High", "Low", "Close")}),
        "looks like a split in unadjusted prices; use adjusted ones",
    ),
    "no price": (lambda f: f[["Date", "Volume"]].assign(a=1.0, b=2.0), "no price column among: Date, Volume, a, b"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_one_line_with_file_row_and_column(case, tmp_path):
    change, message = WRONG[case]
    assert message in refusal(change(ohlcv(60)).reset_index(drop=True), tmp_path)


def test_an_error_in_a_long_table_names_the_asset_and_the_files_row(tmp_path):
    frame = pd.concat([ohlcv(60, s).assign(unique_id=n) for s, n in enumerate("XY")], ignore_index=True)
    frame.loc[70, "Close"] = -1.0
    assert "row 71 (2015-01-15) of Y, column Close: -1 is not a price" in refusal(frame, tmp_path)


@pytest.mark.parametrize("content, message", [
    (None, "does not exist"), (b"", "cannot be read as CSV"), (b"\xff\xfe\x00\x01" * 50, "cannot be read as CSV"),
])  # fmt: skip
def test_files_that_are_no_tables_are_refused(content, message, tmp_path):
    path = tmp_path / "f.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_prices(path)
    (tmp_path / "f.parquet").write_bytes(b"not a parquet file")
    with pytest.raises(InputError, match="cannot be read as parquet"):
        read_prices(tmp_path / "f.parquet")
    with pytest.raises(InputError, match="not from dict"):
        read_prices({"close": [1, 2]})


def test_rows_can_be_dropped_sorted_and_kept_when_asked(tmp_path):
    frame = ohlcv(60)
    frame.loc[3, "Close"] = np.nan
    found = read_prices(frame.sample(frac=1, random_state=0), PriceDataConfig(missing="drop", order="sort"))
    assert len(found.assets[0]) == 59 and np.all(np.diff(found.assets[0].ds.astype(np.int64)) > 0)
    assert "1 row without a price is left out, on 2015-01-06" in found.report() and "sorted" in found.report()
    halved = ohlcv(60)
    for column in ("Open", "High", "Low", "Close"):
        halved.loc[40:, column] /= 2
    assert len(read_prices(halved, PriceDataConfig(splits="keep"))) == 60


def test_rows_without_any_price_are_left_out_and_those_with_some_refused(tmp_path):
    frame = ohlcv(60)
    frame.loc[[3, 9], ["Open", "High", "Low", "Close"]] = np.nan
    found = read_prices(frame)
    assert len(found) == 58 and found.notes == (
        "frame 1: 2 rows without a price are left out, the first on 2015-01-06",
    )
    # The bar of today, which has not ended: at the end, or at the beginning of a file from new to old.
    frame.loc[59, ["Open", "High", "Low", "Close", "Volume"]] = np.nan
    for rows, number in ((frame, 60), (frame[::-1], 1)):
        said = refusal(rows, tmp_path)
        assert f"row {number} (2015-03-25), column Close: the bar has no price yet" in said, said
        assert "--data.missing drop" in said and len(read_prices(rows, PriceDataConfig(missing="drop"))) == 57
    frame.loc[9, "Low"] = 90.0
    assert "row 10 (2015-01-14), column Close: the price is missing, though Low has one" in refusal(frame, tmp_path)


def test_a_market_crash_that_comes_back_is_no_split():
    close = np.full(100, 100.0) * np.exp(0.005 * np.random.default_rng(0).standard_normal(100))
    close[60:63] /= 2
    assert jumps_like_splits(close).size == 0
    close[60:] = close[60:] / np.where(np.arange(60, 100) < 63, 1, 2)
    assert jumps_like_splits(close).tolist() == [60]


def test_an_exchange_calendar_finds_missing_sessions(tmp_path):
    pytest.importorskip("exchange_calendars", reason="exchange_calendars is not installed")
    frame = ohlcv(60)
    said = refusal(frame, tmp_path, calendar="XNYS")
    assert "2015-01-01 is no session of XNYS" in said
    trading = frame[~frame["Date"].isin(pd.to_datetime(["2015-01-01", "2015-01-19", "2015-02-16"]))]
    assert len(read_prices(trading, PriceDataConfig(calendar="XNYS"))) == 57
    assert "XNYS session 2015-01-20 before it is missing" in refusal(
        trading[trading["Date"] != "2015-01-20"].reset_index(drop=True), tmp_path, calendar="XNYS"
    )
    assert "(did you mean 'XNYS'?)" in refusal(frame, tmp_path, calendar="XNY")


def test_the_default_is_the_sp500_of_arch():
    pytest.importorskip("arch", reason="arch is not installed")
    found = read_prices()
    assert found.source.startswith("S&P 500") and len(found) == 5031
    assert found.fingerprint()["span"] == ["1999-01-04", "2018-12-31"]


def test_the_unadjusted_split_of_microsoft_is_seen():
    path = real_file("bokeh_MSFT.csv")
    notes = read_prices(path).report()
    assert "unadjusted split on 2003-02-18 (row 744): log return of Close -0.660, of Adj Close +0.033" in notes
    with pytest.raises(InputError, match=r"row 744 \(2003-02-18\), column Close: log return -0.660 looks like a split"):
        read_prices(path, PriceDataConfig(price_column="Close"))


def test_a_split_that_adjusted_prices_still_hold_is_refused(tmp_path):
    """A column that calls itself adjusted is looked at like any other."""
    frame = ohlcv(rows=200, seed=1)
    frame["Adj Close"] = frame["Close"]
    prices = ["Open", "High", "Low", "Close", "Adj Close"]
    frame.loc[frame.index[120] :, prices] /= 2
    path = write(frame, tmp_path / "s.csv")
    with pytest.raises(InputError, match=r"row 121 .*, column Adj Close: log return -0\.\d+ looks like a split"):
        read_prices(path)
    assert len(read_prices(path, PriceDataConfig(splits="keep")).assets[0].close) == 200


def test_volume_beside_adjusted_prices_is_said_to_jump_at_a_split(tmp_path):
    frame = ohlcv(200)
    factor = np.where(np.arange(200) < 120, 1.0, 0.25)
    frame["Adj Close"] = frame["Close"] * 0.25
    for column in ("Open", "High", "Low", "Close"):
        frame[column] = frame[column] * factor
    split = read_prices(write(frame, tmp_path / "s.csv"))
    assert "s: Volume is the file's: unless it is adjusted, volume jumps at these splits" in split.notes
    without = read_prices(write(frame.drop(columns="Volume"), tmp_path / "s.csv"))
    assert not any("volume jumps" in note for note in without.notes)
    assert not any("volume jumps" in note for note in read_prices(ohlcv(200)).notes)


def test_the_negative_oil_price_is_refused_and_turmoil_is_no_split():
    with pytest.raises(InputError, match=r"row 8644 \(2020-04-20\), column Price: -36.98 is not a price above 0"):
        read_prices(real_file("wti_daily.csv"))
    assert len(read_prices(real_file("brent_daily.csv"))) == 9958


def closes_of(tmp_path, text, name="prices.csv", **config):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    (asset,) = read_prices(path, PriceDataConfig(**config)).assets
    return [str(day) for day in asset.ds.astype("datetime64[D]")], list(asset.close)


DAYS = ["2024-01-11", "2024-01-12", "2024-01-15"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("comma.csv", "Date,Close\n2024-01-11,1234.5\n2024-01-12,1235.5\n2024-01-15,1236.5\n"),
        (
            "thousands.csv",
            'Date,Price\n"Jan 11, 2024","1,234.50"\n"Jan 12, 2024","1,235.50"\n"Jan 15, 2024","1,236.50"\n',
        ),
        ("semicolon.csv", "Date;Close\n11.01.2024;1234,5\n12.01.2024;1235,5\n15.01.2024;1236,5\n"),
        ("dotted.csv", "Datum;Close\n11.01.2024;1.234,5\n12.01.2024;1.235,5\n15.01.2024;1.236,5\n"),
        ("dots.csv", "Date;Close\n2024-01-11;1234.5\n2024-01-12;1235.5\n2024-01-15;1236.5\n"),
        ("tab.tsv", "Date\tClose\n11/01/2024\t1234.5\n12/01/2024\t1235.5\n15/01/2024\t1236.5\n"),
        ("blank.txt", "date close\n01/11/2024 1234.5\n01/12/2024 1235.5\n01/15/2024 1236.5\n"),
        ("marked.csv", "\ufeffDate,Close\n2024-01-11,1234.5\n2024-01-12,1235.5\n2024-01-15,1236.5\n"),
    ],
)
def test_the_separators_decimals_and_dates_of_other_countries_are_read(tmp_path, name, text):
    assert closes_of(tmp_path, text, name) == (DAYS, [1234.5, 1235.5, 1236.5])


def test_a_date_beyond_the_twelfth_says_which_number_is_the_day(tmp_path):
    days, _ = closes_of(tmp_path, "date,close\n11/01/2024,101\n12/01/2024,102\n15/01/2024,103\n")
    assert days == DAYS


def test_dates_that_read_both_ways_are_months_first_unless_told(tmp_path):
    text = "date,close\n02/01/2024,101\n03/01/2024,102\n04/01/2024,103\n"
    assert closes_of(tmp_path, text, max_gap=40)[0][0] == "2024-02-01"
    assert closes_of(tmp_path, text, day_first=True)[0] == ["2024-01-02", "2024-01-03", "2024-01-04"]


def test_dates_under_a_name_of_their_own_are_found(tmp_path):
    days, _ = closes_of(tmp_path, "Handelstag,close\n2024-01-11,101\n2024-01-12,102\n2024-01-15,103\n")
    assert days == DAYS
