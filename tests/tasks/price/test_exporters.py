"""Files as exporters write them are read without an option, and go on at the right dates.

Each file is made in its exporter's shape with values of our own, so that what must be read is known.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from blockyard.errors import InputError
from blockyard.tasks.price.data.clock import in_zone
from blockyard.tasks.price.data.config import PriceDataConfig
from blockyard.tasks.price.data.reader import read_prices
from blockyard.tasks.price.future import future_dates

N = 90


class Bar(NamedTuple):
    day: dt.date
    open: float
    high: float
    low: float
    close: float
    volume: int


def bars(seed: int = 0) -> list[Bar]:
    """Bars of the weekdays from 2024-01-01 on, all numbers of two decimals."""
    draw, day, found, close = np.random.default_rng(seed), dt.date(2024, 1, 1), [], 1200.0
    while len(found) < N:
        if day.weekday() < 5:
            opening, close = close, round(close * float(np.exp(0.01 * draw.standard_normal())), 2)
            high, low = round(max(opening, close) + 1.25, 2), round(min(opening, close) - 1.5, 2)
            found.append(Bar(day, opening, high, low, close, int(draw.integers(1_000, 90_000)) * 100))
        day += dt.timedelta(1)
    return found


BARS, OTHER = bars(), bars(1)
START = dt.datetime(2024, 1, 1)
SECONDS = 1_704_067_200


def lines(
    header: str, row: Callable[[int, Bar], str], *, last_first: bool = False, series: Sequence[Bar] = BARS
) -> str:
    rows = [row(number, bar) for number, bar in enumerate(series)]
    return header + "".join(f"{one}\n" for one in (reversed(rows) if last_first else rows))


def german(value: float) -> str:
    return f"{value:,.2f}".translate(str.maketrans(",.", ".,"))


def hour(number: int) -> dt.datetime:
    return START + dt.timedelta(hours=number)


def eastern(day: dt.date) -> str:
    """New York's offset: summer time from 2024-03-10 on."""
    return "-04:00" if day >= dt.date(2024, 3, 10) else "-05:00"


class Export(NamedTuple):
    text: str | bytes
    clock: str
    step: str = "1 day, Mon–Fri; no holes"
    hourly: bool = False
    ids: tuple[str, ...] = ("prices",)
    has: str = "close open high low volume"


NAIVE = "the file's own; it names no time zone"
EXPORTS = {
    "yfinance, one ticker": Export(
        lines("Price,Close,High,Low,Open,Volume\nTicker,ZZ,ZZ,ZZ,ZZ,ZZ\nDate,,,,,\n",
              lambda n, b: f"{b.day},{b.close},{b.high},{b.low},{b.open},{b.volume}"),
        NAIVE, ids=("ZZ",),
    ),
    "yfinance, several tickers": Export(
        lines("Price,Close,Close,High,High,Low,Low,Open,Open,Volume,Volume\n" + "Ticker" + ",AAA,000001" * 5 +
              "\nDate" + "," * 10 + "\n",
              lambda n, b: f"{b.day},{b.close},{OTHER[n].close},{b.high},{OTHER[n].high},{b.low},{OTHER[n].low},"
              f"{b.open},{OTHER[n].open},{b.volume},{OTHER[n].volume}"),
        NAIVE, ids=("AAA", "000001"),
    ),
    "yfinance, grouped by ticker": Export(
        lines("Ticker" + ",AAA" * 5 + ",NA" * 5 + "\nPrice" + ",Open,High,Low,Close,Volume" * 2 + "\nDate" + "," * 10 +
              "\n",
              lambda n, b: f"{b.day}," + ",".join(str(v) for v in (*b[1:], *OTHER[n][1:]))),
        NAIVE, ids=("AAA", "NA"),
    ),
    "yfinance, history with offsets": Export(
        lines("Date,Open,High,Low,Close,Volume,Dividends,Stock Splits\n",
              lambda n, b: f"{b.day} 00:00:00{eastern(b.day)},{b.open},{b.high},{b.low},{b.close},{b.volume},0.0,0.0"),
        "local dates (-05:00, -04:00)",
    ),
    "Stooq": Export(
        lines("Date,Open,High,Low,Close,Volume\n",
              lambda n, b: f"{b.day},{b.open},{b.high},{b.low},{b.close},{b.volume}"), NAIVE,
    ),
    "Stooq in Polish": Export(
        lines("Data,Otwarcie,Najwyzszy,Najnizszy,Zamkniecie,Wolumen\n",
              lambda n, b: f"{b.day},{b.open},{b.high},{b.low},{b.close},{b.volume}"), NAIVE,
    ),
    "Stooq, bulk": Export(
        lines("<TICKER>,<PER>,<DATE>,<TIME>,<OPEN>,<HIGH>,<LOW>,<CLOSE>,<VOL>,<OPENINT>\n",
              lambda n, b: f"000001.US,D,{b.day:%Y%m%d},000000,{b.open},{b.high},{b.low},{b.close},{b.volume},0"),
        "the file's own, with <TIME>; it names no time zone", ids=("000001.US",),
    ),
    "Stooq, bulk of hours": Export(
        lines("<TICKER>,<PER>,<DATE>,<TIME>,<OPEN>,<HIGH>,<LOW>,<CLOSE>,<VOL>,<OPENINT>\n",
              lambda n, b: f"NA,60,{hour(n):%Y%m%d},{hour(n).hour * 10000},{b.open},{b.high},{b.low},{b.close},"
              f"{b.volume},0"),
        "the file's own, with <TIME>; it names no time zone", "1 hour, around the clock", hourly=True, ids=("NA",),
    ),
    "Binance klines": Export(
        lines("", lambda n, b: f"{(SECONDS + 3600 * n) * 1000},{b.open},{b.high},{b.low},{b.close},{b.volume},"
              f"{(SECONDS + 3600 * (n + 1)) * 1000 - 1},5.5,7,2.5,3.5,0"),
        "milliseconds since 1970, UTC", "1 hour, around the clock", hourly=True,
    ),
    "Binance klines of 2025": Export(
        lines("", lambda n, b: f"{(SECONDS + 3600 * n) * 10**6},{b.open},{b.high},{b.low},{b.close},{b.volume},"
              f"{(SECONDS + 3600 * (n + 1)) * 10**6 - 1},5.5,7,2.5,3.5,0"),
        "microseconds since 1970, UTC", "1 hour, around the clock", hourly=True,
    ),
    "Binance with a header": Export(
        lines("Open time,Open,High,Low,Close,Volume,Close time\n",
              lambda n, b: f"{(SECONDS + 3600 * n) * 1000},{b.open},{b.high},{b.low},{b.close},{b.volume},"
              f"{(SECONDS + 3600 * (n + 1)) * 1000 - 1}"),
        "milliseconds since 1970, UTC", "1 hour, around the clock", hourly=True,
    ),
    "Kraken OHLCVT": Export(
        lines("", lambda n, b: f"{SECONDS + 3600 * n},{b.open},{b.high},{b.low},{b.close},{b.volume},{n}"),
        "seconds since 1970, UTC", "1 hour, around the clock", hourly=True,
    ),
    "Coinbase candles": Export(
        lines("", lambda n, b: f"{SECONDS + 3600 * n},{b.low},{b.high},{b.open},{b.close},{b.volume}", last_first=True),
        "seconds since 1970, UTC", "1 hour, around the clock", hourly=True,
    ),
    "Coinbase with a header": Export(
        lines("time,low,high,open,close,volume\n",
              lambda n, b: f"{SECONDS + 3600 * n},{b.low},{b.high},{b.open},{b.close},{b.volume}"),
        "seconds since 1970, UTC", "1 hour, around the clock", hourly=True,
    ),
    "CryptoDataDownload": Export(
        lines("https://www.example.com\nUnix,Date,Symbol,Open,High,Low,Close,Volume\n",
              lambda n, b: f"{(SECONDS + 3600 * n) * 1000},{hour(n)},X/Y,{b.open},{b.high},{b.low},"
              f"{b.close},{b.volume}"),
        NAIVE, "1 hour, around the clock", hourly=True, ids=("X/Y",),
    ),
    "investing.com": Export(
        "\ufeff" + lines('"Date","Price","Open","High","Low","Vol.","Change %"\n',
                         lambda n, b: f'"{b.day:%m/%d/%Y}","{b.close:,.2f}","{b.open:,.2f}","{b.high:,.2f}",'
                         f'"{b.low:,.2f}","{b.volume / 1000}K","-0.45%"', last_first=True),
        NAIVE,
    ),
    "investing.com in German": Export(
        "\ufeff" + lines('"Datum","Zuletzt","Eröffn.","Hoch","Tief","Vol.","+/- %"\n',
                         lambda n, b: f'"{b.day:%d.%m.%Y}","{german(b.close)}","{german(b.open)}","{german(b.high)}",'
                         f'"{german(b.low)}","{str(b.volume / 1e6).replace(".", ",")}M","-0,45%"', last_first=True),
        NAIVE,
    ),
    "investing.com, a currency": Export(
        lines('"Date","Price","Open","High","Low","Vol.","Change %"\n',
              lambda n, b: f'"{b.day:%m/%d/%Y}","{b.close}","{b.open}","{b.high}","{b.low}","","0.45%"',
              last_first=True),
        NAIVE, has="close open high low",
    ),
    "MetaTrader 5": Export(
        lines("<DATE>\t<TIME>\t<OPEN>\t<HIGH>\t<LOW>\t<CLOSE>\t<TICKVOL>\t<VOL>\t<SPREAD>\n",
              lambda n, b: f"{hour(n):%Y.%m.%d\t%H:%M:%S}\t{b.open}\t{b.high}\t{b.low}\t{b.close}\t{n}\t{b.volume}\t1"),
        "the file's own, with <TIME>; it names no time zone", "1 hour, around the clock", hourly=True,
    ),
    "MetaTrader 4": Export(
        lines("", lambda n, b: f"{hour(n):%Y.%m.%d,%H:%M},{b.open},{b.high},{b.low},{b.close},{b.volume}"),
        "the file's own, with time_of_day; it names no time zone", "1 hour, around the clock", hourly=True,
    ),
    "MetaTrader 5 in UTF-16": Export(
        lines("<DATE>\t<OPEN>\t<HIGH>\t<LOW>\t<CLOSE>\t<VOL>\n",
              lambda n, b: f"{b.day:%Y.%m.%d}\t{b.open}\t{b.high}\t{b.low}\t{b.close}\t{b.volume}"
              ).encode("utf-16"), NAIVE,
    ),
    "HistData": Export(
        lines("", lambda n, b: f"{hour(n):%Y%m%d %H%M%S};{b.open};{b.high};{b.low};{b.close};{b.volume}"),
        NAIVE, "1 hour, around the clock", hourly=True,
    ),
    "FRED": Export(
        lines("observation_date,DCOILWTICO\n", lambda n, b: f"{b.day},{b.close}"), NAIVE, has="close",
    ),
    "Alpha Vantage": Export(
        lines("timestamp,open,high,low,close,volume\n",
              lambda n, b: f"{b.day},{b.open},{b.high},{b.low},{b.close},{b.volume}", last_first=True),
        NAIVE,
    ),
    "Alpha Vantage, adjusted": Export(
        lines("timestamp,open,high,low,close,adjusted_close,volume,dividend_amount,split_coefficient\n",
              lambda n, b: f"{b.day},{2 * b.open},{2 * b.high},{2 * b.low},{2 * b.close},"
              f"{b.close},{b.volume},0.0000,1.0",
              last_first=True),
        NAIVE,
    ),
    "TradingView": Export(
        lines("time,open,high,low,close,Volume\n",
              lambda n, b: f"{SECONDS + 3600 * n},{b.open},{b.high},{b.low},{b.close},{b.volume}"),
        "seconds since 1970, UTC", "1 hour, around the clock", hourly=True,
    ),
    "TradingView in ISO time": Export(
        lines("time,open,high,low,close,Volume\n",
              lambda n, b: f"{b.day}T09:30:00{eastern(b.day)},{b.open},{b.high},{b.low},{b.close},{b.volume}"),
        "local dates (-05:00, -04:00)",
    ),
    "Nasdaq": Export(
        lines("Date,Close/Last,Volume,Open,High,Low\n",
              lambda n, b: f"{b.day:%m/%d/%Y},${b.close},{b.volume},${b.open},${b.high},${b.low}", last_first=True),
        NAIVE,
    ),
    "Barchart": Export(
        lines("Time,Open,High,Low,Last,Change,%Chg,Volume\n",
              lambda n, b: f"{b.day:%m/%d/%Y},{b.open},{b.high},{b.low},{b.close},0.5,+0.45%,{b.volume}")
        + '"Downloaded from Barchart.com as of 02-02-2024"\n', NAIVE,
    ),
    "Excel, German": Export(
        lines("Datum;Eröffnung;Hoch;Tief;Schlusskurs;Volumen\n",
              lambda n, b: f"{b.day:%d.%m.%Y};{german(b.open)};{german(b.high)};{german(b.low)};{german(b.close)};"
              f"{german(b.volume)[:-3]}").encode("cp1252"), NAIVE,
    ),
    "Excel, US": Export(
        lines("Date,Open,High,Low,Close,Volume\n",
              lambda n, b: f'{b.day.month}/{b.day.day}/{b.day.year},"{b.open:,.2f}","{b.high:,.2f}","{b.low:,.2f}",'
              f'"{b.close:,.2f}","{b.volume:,}"').replace("\n", "\r\n"), NAIVE,
    ),
    "wide, a column per ticker": Export(
        lines("Date,AAA,000001\n", lambda n, b: f"{b.day},{b.close},{OTHER[n].close}"),
        NAIVE, ids=("AAA", "000001"), has="close",
    ),
    "long": Export(
        lines("unique_id,ds,y\n", lambda n, b: f"AAA,{b.day},{b.close}")
        + lines("", lambda n, b: f"NA,{b.day},{b.close}", series=OTHER),
        NAIVE, ids=("AAA", "NA"), has="close",
    ),
    "quantmod in R": Export(
        lines('"","ZZ.Open","ZZ.High","ZZ.Low","ZZ.Close","ZZ.Volume"\n',
              lambda n, b: f'"{b.day}",{b.open},{b.high},{b.low},{b.close},{b.volume}'), NAIVE, ids=("ZZ",),
    ),
    "write.table in R": Export(
        lines('"Date" "Open" "High" "Low" "Close" "Volume"\n',
              lambda n, b: f'"{n + 1}" "{b.day}" {b.open} {b.high} {b.low} {b.close} {b.volume}'), NAIVE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("exporter", EXPORTS)
def test_a_file_in_an_exporters_shape_is_read_as_it_is_meant(exporter: str, tmp_path: Path) -> None:
    export, path = EXPORTS[exporter], tmp_path / "prices.csv"
    path.write_bytes(export.text if isinstance(export.text, bytes) else export.text.encode())
    prices = read_prices(path)
    assert tuple(asset.unique_id for asset in prices.assets) == export.ids
    for asset, series in zip(prices.assets, (BARS, OTHER)):
        when = [hour(n) for n in range(N)] if export.hourly else [bar.day for bar in series]
        days = "local dates" in export.clock
        assert (asset.ds.astype("datetime64[D]" if days else "datetime64[ns]") == np.array(when, "datetime64[s]")).all()
        for part in export.has.split():
            want = [float(getattr(bar, part)) for bar in series]
            assert np.allclose(getattr(asset, part), want, rtol=1e-12), part
        assert all(getattr(asset, part) is None for part in ("open", "volume") if part not in export.has)
    assert prices.understood[-1] == f"clock: {export.clock}"
    assert f"step: {export.step}" in prices.report()


@pytest.mark.parametrize("exporter", EXPORTS)
def test_forecasts_of_an_exporters_file_are_dated_as_its_rows_go_on(exporter: str, tmp_path: Path) -> None:
    export, path = EXPORTS[exporter], tmp_path / "prices.csv"
    path.write_bytes(export.text if isinstance(export.text, bytes) else export.text.encode())
    ahead = (1, 2, 3, 5, 10)
    for asset in read_prices(path).assets:
        found = in_zone(future_dates(asset.ds, ahead), asset.zone).astype("datetime64[s]")
        if export.hourly:
            assert found.tolist() == [hour(N - 1 + h) for h in ahead]
        else:
            days = np.busday_offset(BARS[-1].day, np.array(ahead)).astype("datetime64[D]")
            assert found.astype("datetime64[D]").tolist() == days.tolist()


@pytest.mark.parametrize("exporter", ["investing.com", "Alpha Vantage", "Coinbase candles", "Nasdaq"])
def test_files_from_new_to_old_are_turned_round_and_say_so(exporter: str, tmp_path: Path) -> None:
    text = EXPORTS[exporter].text
    assert isinstance(text, str)
    (tmp_path / "p.csv").write_text(text, encoding="utf-8")
    (note,) = [note for note in read_prices(tmp_path / "p.csv").notes if "new to old" in note]
    assert note == "p: rows run from new to old and are read in the order of time"
    # A single row elsewhere is no order, which only the user can mean.
    rows = text.splitlines(keepends=True)
    rows[-1], rows[-2] = rows[-2], rows[-1]
    (tmp_path / "p.csv").write_text("".join(rows), encoding="utf-8")
    with pytest.raises(InputError, match=r"comes after .*; sort the rows by date, or pass --data\.order sort"):
        read_prices(tmp_path / "p.csv")
    assert len(read_prices(tmp_path / "p.csv", PriceDataConfig(order="sort"))) == N


def test_freds_dots_are_no_values(tmp_path: Path) -> None:
    path = tmp_path / "DCOILWTICO.csv"
    path.write_text(lines("DATE,DCOILWTICO\n", lambda n, b: f"{b.day},{'.' if n % 30 == 4 else b.close}"))
    prices = read_prices(path)
    assert len(prices) == N - 3
    assert prices.notes == ("DCOILWTICO: 3 rows without a price are left out, the first on 2024-01-05",)
    assert read_prices(path, PriceDataConfig(missing="drop")).fingerprint() == prices.fingerprint()


def test_a_table_with_a_column_per_ticker_is_its_assets(tmp_path: Path) -> None:
    path = tmp_path / "wide.csv"
    path.write_text(
        lines("Date,AAA,NA,000001\n", lambda n, b: f"{b.day},{b.close},{OTHER[n].close if n > 9 else ''},{b.open}")
    )
    prices = read_prices(path)
    assert [(asset.unique_id, len(asset)) for asset in prices.assets] == [("AAA", N), ("NA", N - 10), ("000001", N)]
    assert np.allclose(prices["NA"].close, [bar.close for bar in OTHER[10:]])
    assert "NA: 10 rows without any value of it are left out" in prices.notes
    assert "each column is taken for an asset's price (else: --data.price_column)" in prices.report()
    (only,) = read_prices(path, PriceDataConfig(price_column="AAA", extra="none")).assets
    assert np.array_equal(only.close, prices["AAA"].close)


def test_a_table_of_other_things_is_no_wide_table(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text(lines("Date,a,b\n", lambda n, b: f"{b.day},{b.close},{n}"))
    with pytest.raises(InputError, match=r"no price column among: Date, a, b; .*but b is 0 in row 1"):
        read_prices(path)
    path.write_text(lines("Date,a,b,Volume\n", lambda n, b: f"{b.day},{b.close},{b.open},{n}"))
    with pytest.raises(InputError, match="no price column among"):
        read_prices(path)
