"""Headers, cells and numbers of files of text: counted and checked, never shifted or guessed."""

from __future__ import annotations

import datetime as dt
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from blockyard.errors import InputError
from blockyard.tasks.price.data.config import PriceDataConfig
from blockyard.tasks.price.data.header import mangled
from blockyard.tasks.price.data.kinds import kind
from blockyard.tasks.price.data.reader import read_prices
from blockyard.tasks.price.data.table import Prices

N = 60
DAYS = [dt.date(2024, 1, 1) + dt.timedelta(n) for n in range(N)]
CLOSES = [100 + (n * 7) % 5 + 0.25 for n in range(N)]


def read(tmp_path: Path, text: str | bytes, **options: object) -> Prices:
    path = tmp_path / "p.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_prices(path, PriceDataConfig(**options))  # type: ignore[arg-type]


def table(header: str, row: str, *, names: tuple[str, ...] = ()) -> str:
    """Rows of a pattern with {day}, {close}, {n} and {m} = n + 1."""
    rows = [row.format(day=DAYS[n], close=CLOSES[n], n=n, m=n + 1) for n in range(N)]
    return "\n".join([*((header,) if header else ()), *rows]) + "\n"


CELLS = {
    "a comma behind every row": table("Date,Close,Volume", "{day},{close},{n},"),
    "two commas behind every row": table("Date,Close,Volume", "{day},{close},{n},,"),
    "semicolons behind rows and header": table("Date;Close;Volume;", "{day};{close};{n};"),
    "names of rows": table("Date,Close,Volume", "{m},{day},{close},{n}"),
    "words as names of rows": table("Date,Close,Volume", "row{m},{day},{close},{n}"),
    "dates as names of rows": table("Close,Volume", "{day},{close},{n}"),
    "an index with an empty name": table(",Close,Volume", "{day},{close},{n}"),
    "a title": table("Prices of ZZ\nDate,Close,Volume", "{day},{close},{n}"),
    "two titles, one padded": table("Prices of ZZ,,\nas of today\n\nDate,Close,Volume", "{day},{close},{n}"),
    "a title over names of rows": table("https://www.example.com\nDate,Close,Volume", "{m},{day},{close},{n}"),
    "words below": table("Date,Close,Volume", "{day},{close},{n}") + '"Source: example, all rights reserved"\n\n',
}


@pytest.mark.parametrize("case", CELLS)
def test_cells_lie_under_their_names(case: str, tmp_path: Path) -> None:
    (asset,) = read(tmp_path, CELLS[case]).assets
    assert asset.ds.astype("datetime64[D]").tolist() == DAYS
    assert np.array_equal(asset.close, CLOSES)
    assert asset.volume is not None and asset.volume.tolist() == list(range(N)) and asset.extra == {}


OTHER_LETTERS = {
    "gb18030": "日期,收盘价,成交量",
    "big5": "日期,收盤價,成交股數",
    "shift_jis": "日付,終値,出来高",
    "cp949": "날짜,종가,거래량",
    "cp1251": "Дата,Цена закрытия,Объём",
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", *OTHER_LETTERS])
def test_names_in_other_letters_are_known_in_the_encodings_of_their_users(encoding: str, tmp_path: Path) -> None:
    header = OTHER_LETTERS.get(encoding, OTHER_LETTERS["gb18030"])
    (asset,) = read(tmp_path, table(header, "{day},{close},{n}").encode(encoding)).assets
    assert np.array_equal(asset.close, CLOSES)
    assert asset.volume is not None and asset.volume.tolist() == list(range(N)) and asset.extra == {}


def test_codes_of_stocks_name_assets_with_their_zeros(tmp_path: Path) -> None:
    text = table("日期,股票代码,收盘", "{day},000001,{close}") + table("", "{day},000002,{close}")
    assert [asset.unique_id for asset in read(tmp_path, text).assets] == ["000001", "000002"]


@pytest.mark.parametrize("form", ["{0.year}年{0.month}月{0.day}日", "{0.year}년 {0.month}월 {0.day}일"])
def test_dates_that_name_year_month_and_day_are_read(form: str, tmp_path: Path) -> None:
    text = "日付,終値\n" + "".join(f"{form.format(day)},{close}\n" for day, close in zip(DAYS, CLOSES))
    (asset,) = read(tmp_path, text).assets
    assert asset.ds.astype("datetime64[D]").tolist() == DAYS


def test_a_first_date_in_an_unknown_form_is_told_one_that_is_known(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'Heisei 30' is not a date in a form that is known, such as 2024-01-31"):
        read(tmp_path, table("date,close", "Heisei 30,{close}"))


@pytest.mark.parametrize("name", ["Größe", "Übergröße", "naïve ÄÖÜß"])
def test_western_letters_are_not_taken_for_others(name: str, tmp_path: Path) -> None:
    text = table(f"Datum;Schlusskurs;{name}", "{day};{close};{n}").encode("cp1252")
    (asset,) = read(tmp_path, text).assets
    assert list(asset.extra) == [name] and np.array_equal(asset.close, CLOSES)


HEADLESS = {
    "dates and prices": table("", "{day},{close}"),
    "tabs": table("", "{day}\t{close}"),
    "dates and OHLC": table("", "{day},100,110,90,{close}"),
    "dates and OHLCV": table("", "{day} 00:00;100;110;90;{close};{n}"),
}


@pytest.mark.parametrize("case", HEADLESS)
def test_without_a_header_no_row_is_lost(case: str, tmp_path: Path) -> None:
    prices = read(tmp_path, HEADLESS[case])
    assert len(prices) == N and np.array_equal(prices.assets[0].close, CLOSES)
    assert f"no header; columns as in {'dates and prices' if case == 'tabs' else case}" in prices.report()


REFUSED = {
    "no header, five unknown numbers": (
        table("", "{day},{close},{n},{m},7"),
        r"first line is a row \(2024-01-01, 100.25, 0, 1, 7\) and no header, and its 5 cells .*put a line",
    ),
    "no header, numbers alone": (table("", "{close}"), r"first line is a row \(100.25\) and no header"),
    "no header, bars that fit two orders": (
        table("", "{day},{close},{close},{close},{close},{n}"), "no shape that is known",
    ),
    "a cell more, of words": (
        table("Date,Close", "{day},{close},x"),
        r"rows have 3 cells \(2024-01-01, 100.25, x\) where the header has 2 \(Date, Close\); give each cell",
    ),
    "two cells more": (table("Date,Close", "{day},{close},7,8"), "rows have 4 cells"),
    "a number more": (table("Close,Volume", "{m}.5,{close},7"), "rows have 3 cells"),
    "a row of units": (
        table("Date,Open,Close,Volume\n,USD,USD,shares", "{day},{close},{close},{n}"),
        "no price among the columns of 'shares': Volume; where this is no asset, remove the line",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_known_is_refused_with_the_remedy(case: str, tmp_path: Path) -> None:
    text, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        read(tmp_path, text)


def test_a_broken_first_row_is_a_row(tmp_path: Path) -> None:
    text = table("Date,Open,Close", "{day},{close},{close}").replace("2024-01-01", "soon")
    with pytest.raises(InputError, match=r"row 1 \(soon\), column Date: 'soon' is not a date|row 2 .* not a date"):
        read(tmp_path, text)
    short = table("Date,Close,Volume", "{day},{close},{n}").replace("2024-01-01,100.25,0", "2024-01-01,100.25")
    with pytest.raises(InputError, match=r"row 1 \(2024-01-01\), column Volume: the volume is missing"):
        read(tmp_path, short)


def test_names_without_text_and_doubles_are_named_as_pandas_names_them() -> None:
    assert mangled(["", "a", "a", "b", "", "a"]) == ("Unnamed: 0", "a", "a.1", "b", "Unnamed: 4", "a.2")
    for names in ("a,a.1,a", "a,a,a.1,a", " a,a, b", "a,a.1,a.1,a"):
        assert mangled(names.split(",")) == tuple(pd.read_csv(io.StringIO(f"{names}\n")).columns)


def test_names_of_columns_keep_their_blanks(tmp_path: Path) -> None:
    """They are the names of features."""
    prices = read(tmp_path, table("Date, Close, turnover ", "{day},{close},{n}"))
    assert list(prices.assets[0].extra) == [" turnover "]


@pytest.mark.parametrize("cell, looks", [
    ("2024-01-31", "date"), ("31.1.24", "date"),
    ("Jan 5, 2024", "date"), ("5. Mai 2024", "date"), ("2024.01.02 01:00", "date"),
    ("20240131 093000", "date"), ("2024-01-08T00:00:00.000+0900", "date"), ("2024Q1", "date"), ("9:30", "time"),
    ("9:30:00.5 pm", "time"), ("1.234,5", "number"), ("-0.45%", "number"), ("$187.15", "number"), ("1.25M", "number"),
    ("1704067200", "number"), ("1.050.300", "number"), (".", "nothing"), ("#N/A", "nothing"), ("AAPL", "text"),
    ("Close", "text"), ("3M", "number"), ("B2", "text"), ("https://www.example.com", "text"),
])  # fmt: skip
def test_what_a_cell_looks_like(cell: str, looks: str) -> None:
    assert kind(cell) == looks


IDS = [("000001", "600519"), ("NA", "MSFT"), ("TRUE", "MSFT"), ("1.10", "1e5"), ("null.L", "NAN"), ("007", "7")]


@pytest.mark.parametrize("ids", IDS, ids=" ".join)
def test_names_of_assets_stay_as_written(ids: tuple[str, str], tmp_path: Path) -> None:
    text = "symbol,date,close\n" + "".join(f"{one},{d},{c}\n" for one in ids for d, c in zip(DAYS, CLOSES))
    assert tuple(asset.unique_id for asset in read(tmp_path, text).assets) == ids
    named = read(tmp_path, text.replace("symbol", "Kennung"), id_column="Kennung")
    assert tuple(asset.unique_id for asset in named.assets) == ids


def test_a_missing_name_of_an_asset_is_refused(tmp_path: Path) -> None:
    for name in ("", "nan", "None"):
        text = "symbol,date,close\n" + "".join(f"{name if n == 9 else 'A'},{d},1.5\n" for n, d in enumerate(DAYS))
        with pytest.raises(InputError, match="row 10, column symbol: the asset's name is missing"):
            read(tmp_path, text)


# Four closes and volumes as written, the separator, and what they are.
WRITTEN = {
    "German thousands": (";", ("12,50", "13,50", "14,25", "11,50"), ("950", "1.050", "12.300", "8.001"), 12.5, 1050),
    "German thousands without fractions": (
        ";", ("12,5", "1.013,5", "14,25", "11,5"), ("1.950", "1.050", "2.300", "8.001"), 12.5, 1050,
    ),
    "German in quotes between commas": (
        ",", ('"1.012,50"', '"1.013,50"', '"1.014,25"', '"1.011,5"'), ("950", "1.050", "12.300", "8.001"), 1012.5, 1050,
    ),
    "English thousands between tabs": (
        "\t", ("12.50", "13.50", "14.25", "11.50"), ("1,950", "1,050", "2,300", "8,001"), 12.5, 1050,
    ),
    "English thousands between semicolons": (
        ";", ("12.50", "13.50", "14.25", "11.50"), ("950", "1,050", "12,300", "8,001"), 12.5, 1050,
    ),
    "French": (";", ("12,50", "13,50", "14,25", "11,50"), ("950", "1 050", "12\u202f300", "8\xa0001"), 12.5, 1050),
    "Swiss": (";", ("12.50", "13.50", "14.25", "11.50"), ("950", "1'050", "12’300", "8'001"), 12.5, 1050),
    "letters": (",", ("12.50", "13.50", "14.25", "11.50"), ("950", "1.05K", "1.23M", "0.008B"), 12.5, 1050),
    "German letters": (";", ("12,50", "13,50", "14,25", "11,50"), ("950", "1,05K", "1,23M", "0,008B"), 12.5, 1050),
    "dollars": (",", ("$12.50", "$13.50", "$14.25", "$11.50"), ("950", "1050", "12300", "8001"), 12.5, 1050),
    "euros": (";", ("12,50 €", "13,50 €", "14,25 €", "11,50 €"), ("950", "1.050", "12.300", "8.001"), 12.5, 1050),
    "powers of ten": (
        ";", ("1,25E+01", "1,35E+01", "1,4E+01", "1,1E+01"), ("950", "1.050", "12.300", "8.001"), 12.5, 1050,
    ),
    "three decimals told by the rest": (
        ";", ("1,085", "1,086", "1,087", "0,998"), ("950", "1.050", "12.300", "8.001"), 1.085, 1050,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRITTEN)
def test_a_file_has_one_decimal_mark(case: str, tmp_path: Path) -> None:
    separator, closes, volumes, close, volume = WRITTEN[case]
    rows = [separator.join((str(d), closes[n % 4], volumes[n % 4])) for n, d in enumerate(DAYS)]
    (asset,) = read(tmp_path, "\n".join([separator.join(("Date", "Close", "Volume")), *rows]) + "\n").assets
    assert asset.close[0] == close and asset.volume is not None and asset.volume[1] == volume
    assert asset.volume[0] in (950, 1950)


def test_numbers_that_can_be_read_in_two_ways_are_refused_until_told(tmp_path: Path) -> None:
    text = "Date;Close;Volume\n" + "".join(f"{d};1,{100 + n};1.{100 + n}\n" for n, d in enumerate(DAYS))
    with pytest.raises(InputError, match=r"column Close: '1,100' can be read in two ways.* --data.decimal point or"):
        read(tmp_path, text)
    comma = read(tmp_path, text, decimal="comma").assets[0]
    assert comma.volume is not None and (comma.close[0], comma.volume[0]) == (1.1, 1100)
    point = read(tmp_path, text, decimal="point").assets[0]
    assert point.volume is not None and (point.close[0], point.volume[0]) == (1100, 1.1)
    with pytest.raises(InputError, match=r"data.decimal='dot' is not one of: auto, point, comma"):
        PriceDataConfig(decimal="dot")  # type: ignore[arg-type]


def test_a_mark_in_a_column_of_other_things_turns_nothing(tmp_path: Path) -> None:
    """A change of 0.5% beside 99,641 is no ground to read a price a thousandfold."""
    text = "Date;Close;chg\n" + "".join(f"{d};1,{100 + n};0.{n}%\n" for n, d in enumerate(DAYS))
    with pytest.raises(InputError, match="column Close: '1,100' can be read in two ways"):
        read(tmp_path, text)
    assert read(tmp_path, text, decimal="comma").assets[0].close[0] == 1.1
    sure = text.replace("1,100;", "1,1005;")
    assert read(tmp_path, sure).assets[0].close[1] == 1.101


def test_a_file_with_both_marks_reads_what_is_sure_and_refuses_the_rest(tmp_path: Path) -> None:
    sure = "Date;Close;rate\n" + "".join(f"{d};12,{10 + n};3.{10 + n}\n" for n, d in enumerate(DAYS))
    asset = read(tmp_path, sure).assets[0]
    assert (asset.close[0], asset.extra["rate"][0]) == (12.1, 3.1)
    unsure = sure.replace("rate\n", "rate;Volume\n", 1).replace("\n2024", ";1.050\n2024").rstrip("\n") + ";1.050\n"
    unsure = unsure.replace("Volume;1.050", "Volume")
    with pytest.raises(InputError, match=r"column Volume: '1.050' can be read in two ways"):
        read(tmp_path, unsure)


def test_one_wrong_cell_is_named_and_does_not_turn_the_others(tmp_path: Path) -> None:
    text = "Date;Close\n" + "".join(f"{d};{'12.5x' if n == 9 else f'1.{100 + n},5'}\n" for n, d in enumerate(DAYS))
    with pytest.raises(InputError, match=r"row 10 \(2024-01-10\), column Close: '12.5x' is not a number"):
        read(tmp_path, text)
    cells = ['"12,5"' if n == 9 else f"{100 + n}.25" for n in range(N)]
    text = "Date,Close\n" + "".join(f"{d},{cell}\n" for d, cell in zip(DAYS, cells))
    with pytest.raises(InputError, match=r"row 10 .* '12,5' is not a number"):
        read(tmp_path, text)


@pytest.mark.parametrize("mark", [".", "-", "", "N/A", "null", "#N/A", "–"])
def test_marks_for_no_value_are_missing_prices(mark: str, tmp_path: Path) -> None:
    text = "Date,Close\n" + "".join(f"{d},{mark if n % 20 == 9 else c}\n" for n, (d, c) in enumerate(zip(DAYS, CLOSES)))
    prices = read(tmp_path, text)
    assert len(prices) == N - 3 and "3 rows without a price are left out, the first on 2024-01-10" in prices.report()


def test_empty_columns_are_left_out_and_said(tmp_path: Path) -> None:
    prices = read(tmp_path, table("Date,Open,Close,Vol.,note", "{day},{close},{close},-,"))
    (asset,) = prices.assets
    assert asset.volume is None and asset.extra == {} and asset.open is not None
    assert "Vol. is empty and left out" in prices.report() and "note is empty and left out" in prices.report()


def test_percentages_are_parts_of_one(tmp_path: Path) -> None:
    text = table("Date,Close,Change %", "{day},{close},-0.{m}%")
    assert read(tmp_path, text).assets[0].extra == {}
    assert "Change %, numbers with marks or as text, is left out (else: --data.extra)" in read(tmp_path, text).report()
    prices = read(tmp_path, text, extra="Change %")
    assert np.allclose(prices.assets[0].extra["Change %"][:9], [-(n + 1) / 1000 for n in range(9)])
    assert "Change %: -0.1% is -0.001" in prices.report()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_encodings_are_told_by_the_bytes(encoding: str, tmp_path: Path) -> None:
    text = table("Datum;Eröffnung;Schluß;Währung", "{day};{close};{close};€")
    prices = read(tmp_path, text.encode(encoding), price_column="Schluß")
    assert np.array_equal(prices.assets[0].close, CLOSES) and prices.assets[0].open is not None


@pytest.mark.parametrize(
    "content", [b"\x00\x01\x02" * 9, b"Date,Close\n2024-01-01,\x00\n", b"\x81\x8d\x8f", b"\xff\xfe\x00"]
)
def test_bytes_that_are_no_text_are_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"p\.csv cannot be read as CSV: it is no text"):
        read(tmp_path, content)


def test_numbers_come_out_as_pandas_reads_them(tmp_path: Path) -> None:
    """To the last bit: runs know their data by its checksum."""
    draw = np.random.default_rng(0)
    frame = pd.DataFrame({"Date": pd.date_range("2000-01-01", periods=500), "Close": np.exp(draw.normal(0, 3, 500)),
                          "extra": draw.normal(0, 1e-3, 500), "whole": draw.integers(0, 2**62, 500)})  # fmt: skip
    frame.to_csv(tmp_path / "p.csv", index=False)
    (asset,) = read_prices(tmp_path / "p.csv").assets
    want = pd.read_csv(tmp_path / "p.csv")
    assert np.array_equal(asset.close, want["Close"].to_numpy())
    assert np.array_equal(asset.extra["extra"], want["extra"].to_numpy())
    assert np.array_equal(asset.extra["whole"], want["whole"].to_numpy(np.float64))


def test_the_columns_of_two_levels_of_frames_are_read_like_their_files(tmp_path: Path) -> None:
    index = pd.DatetimeIndex(DAYS, name="Date")
    fields = ["Close", "High", "Low", "Open", "Volume"]
    values = {"Close": CLOSES, "High": [c + 1 for c in CLOSES], "Low": [c - 1 for c in CLOSES], "Open": CLOSES,
              "Volume": range(N)}  # fmt: skip
    for order in (("Price", "Ticker"), ("Ticker", "Price")):
        keys = [(f, t) if order[0] == "Price" else (t, f) for t in ("NA", "000001") for f in fields]
        frame = pd.DataFrame({key: values[key[0] if order[0] == "Price" else key[1]] for key in keys}, index=index)
        frame.columns = pd.MultiIndex.from_tuples(keys, names=order)
        frame.to_csv(tmp_path / "p.csv")
        frame.to_parquet(tmp_path / "p.parquet")
        sums = set()
        for source in (frame, frame.reset_index(), tmp_path / "p.csv", tmp_path / "p.parquet"):
            prices = read_prices(source)
            assert [asset.unique_id for asset in prices.assets] == ["NA", "000001"]
            assert all(np.array_equal(asset.close, CLOSES) and asset.volume is not None for asset in prices.assets)
            sums.add(prices.fingerprint()["sha256"])
        assert len(sums) == 1
        with pytest.raises(InputError, match=r"NA has no column 'Adj Close'.*it has: Close, High"):
            read_prices(frame, PriceDataConfig(price_column="Adj Close"))


@pytest.mark.parametrize("backend", ["numpy_nullable", "pyarrow"])
def test_frames_of_nullable_types_are_read_like_others(backend: str) -> None:
    frame = pd.DataFrame({"Date": pd.DatetimeIndex(DAYS), "Close": CLOSES, "Volume": range(N), "symbol": "X"})
    plain = read_prices(frame).fingerprint()["sha256"]
    nullable = frame.convert_dtypes(dtype_backend=backend)  # type: ignore[call-overload]
    assert read_prices(nullable).fingerprint()["sha256"] == plain
    assert read_prices(nullable.set_index("Date")).fingerprint()["sha256"] == plain
    nullable.loc[9, "Close"] = pd.NA
    assert len(read_prices(nullable)) == N - 1


def test_columns_of_text_that_were_no_features_are_none_by_themselves(tmp_path: Path) -> None:
    """Features of a run stay those that it was trained with."""
    text = table("Date,Close,cap,yield,note,lot", "{day},{close},1.{m}M,-,$5,7")
    assert list(read(tmp_path, text).assets[0].extra) == ["lot"]
    frame = pd.DataFrame({"Date": DAYS, "Close": CLOSES, "lot": ["007"] * N, "size": range(N)})
    assert list(read_prices(frame).assets[0].extra) == ["size"]
    assert read_prices(frame, PriceDataConfig(extra="lot")).assets[0].extra["lot"][0] == 7
    only = table("Date,Kurswert,Change %", "{day},{close},-0.{m}%")
    assert np.array_equal(read(tmp_path, only).assets[0].close, CLOSES)
