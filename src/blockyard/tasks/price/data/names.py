"""Spellings of the columns of price tables, and how names are compared."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Spellings of a column's name without case, blanks and punctuation; the first that a table has is taken.
SPELLINGS: dict[str, tuple[str, ...]] = {
    "unique_id": (
        "uniqueid", "symbol", "ticker", "asset", "assetid", "instrument", "code", "tscode", "tic", "股票代码",
        "证券代码", "股票代號", "證券代號", "銘柄コード", "종목코드",
    ),
    "ds": (
        "ds", "date", "datetime", "timestamp", "time", "day", "tradedate", "tradingday", "observationdate", "日期",
        "datum", "fecha", "日付", "날짜", "일자", "дата",
        "opentime", "unix", "unixtime", "unixtimestamp", "epoch",
    ),
    "adjusted": ("adjclose", "adjustedclose", "closeadj", "adjustedprice", "adjprice"),
    "close": (
        "close", "y", "price", "closeprice", "closelast", "last", "settle", "value", "收盘", "收盘价", "收盤",
        "收盤價", "終値", "종가", "закрытие", "ценазакрытия", "цена",
        "schluss", "schlusskurs", "zuletzt", "kurs", "zamkniecie",
    ),
    "open": (
        "open", "openprice", "开盘", "开盘价", "開盤", "開盤價", "始値", "시가", "eröffnung", "eröffnungskurs",
        "eröffn", "erster", "otwarcie", "открытие", "ценаоткрытия", "откр",
    ),
    "high": (
        "high", "highprice", "最高", "最高价", "最高價", "高値", "고가", "hoch", "tageshoch", "höchstkurs", "najwyzszy",
        "максимум", "макс",
    ),
    "low": (
        "low", "lowprice", "最低", "最低价", "最低價", "安値", "저가", "tief", "tagestief", "tiefstkurs", "najnizszy",
        "минимум", "мин",
    ),
    "volume": (
        "volume", "vol", "volumn", "成交量", "成交股數", "出来高", "거래량", "volumen", "wolumen", "объём", "объем",
    ),
}  # fmt: skip
# A column of times of day beside one of dates.
TIMES_OF_DAY = ("time", "timeofday", "uhrzeit", "zeit", "czas", "hora")
# Numbers that repeat the dates.
CLOCKS = ("unix", "unixtime", "unixtimestamp", "epoch", "timestamp", "time", "opentime", "closetime")
# What a level of a header of two levels may name: parts of a price, and what yfinance adds to them.
FIELDS = frozenset(
    name for part in ("adjusted", "close", "open", "high", "low", "volume") for name in SPELLINGS[part]
) | {"adjusted", "dividends", "stocksplits", "capitalgains", "repaired", "vwap", "tradecount", "numberoftrades"}


def simple(name: str) -> str:
    """Give a name without case, blanks and punctuation: "Adj. Close*" is "adjclose"."""
    return re.sub(r"[\W_]+", "", name.lower())


def is_date_name(name: str) -> bool:
    """Return whether a column of this name holds dates."""
    return simple(name) in SPELLINGS["ds"]


def says_date(name: str) -> bool:
    """Return whether a name says that its column holds dates, rather than times or numbers of rows."""
    return "date" in simple(name) or simple(name) in (
        "datum", "fecha", "日期", "日付", "날짜", "일자", "дата", "timestamp", "tradingday",
    )  # fmt: skip


def part_of(name: str) -> str | None:
    """Return which part a name spells: "adjusted", "close", …; None for others."""
    spelled = "adjclose" if simple(name) == "adjusted" else simple(name)
    return next((part for part, known in SPELLINGS.items() if spelled in known), None)


def spells_a_column(cells: Iterable[str]) -> bool:
    """Return whether a cell is a known name of a column in letters beyond ASCII."""
    known = {name for spellings in SPELLINGS.values() for name in spellings if not name.isascii()}
    return any(simple(cell) in known for cell in cells)
