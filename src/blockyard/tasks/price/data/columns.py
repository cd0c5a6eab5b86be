"""Which column of a table of prices plays which part, by its name or by what it holds."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blockyard.errors import InputError, require, suggest
from blockyard.tasks.price.data.config import PriceDataConfig

# Spellings of a column's name without case, blanks and punctuation; the first that a table has is taken.
SPELLINGS: dict[str, tuple[str, ...]] = {
    "unique_id": ("uniqueid", "symbol", "ticker", "asset", "assetid", "instrument", "code", "tscode", "tic"),
    "ds": ("ds", "date", "datetime", "timestamp", "time", "day", "tradedate", "tradingday", "observationdate", "日期"),
    "adjusted": ("adjclose", "adjustedclose", "closeadj", "adjustedprice", "adjprice"),
    "close": ("close", "y", "price", "closeprice", "closelast", "last", "settle", "value", "收盘", "收盘价"),
    "open": ("open", "openprice", "开盘", "开盘价"),
    "high": ("high", "highprice", "最高", "最高价"),
    "low": ("low", "lowprice", "最低", "最低价"),
    "volume": ("volume", "vol", "volumn", "成交量"),
}
# What is kept as an index by writers of CSV files and means nothing.
_NAMELESS = re.compile(r"^(Unnamed: \d+|index|level_\d+)$")


@dataclass(frozen=True)
class Columns:
    """Which column of a table plays which part; None where there is none."""

    close: str
    unique_id: str | None
    ds: str | None
    raw_close: str | None
    open: str | None
    high: str | None
    low: str | None
    volume: str | None
    extra: tuple[str, ...]


def simple(name: str) -> str:
    """ "Adj. Close*" -> "adjclose"."""
    return re.sub(r"[\W_]+", "", name.lower())


def find_columns(source: str, frame: Any, config: PriceDataConfig) -> Columns:
    """Which column plays which part.

    Raises:
        InputError: naming the columns there are, when there is no price among them or a named one is missing.
    """
    names = [str(name) for name in frame.columns]
    by_simple: dict[str, str] = {}
    for name in names:
        by_simple.setdefault(simple(name), name)
    found = {part: next((by_simple[s] for s in known if s in by_simple), None) for part, known in SPELLINGS.items()}
    for part, option in (("unique_id", config.id_column), ("ds", config.date_column), ("close", config.price_column)):
        if option is None:
            continue
        if option not in names:
            raise InputError(f"{source} has no column {option!r}{suggest(option, names)}; it has: {', '.join(names)}")
        found[part] = option
        if part == "close":
            found["adjusted"] = None
    if found["ds"] is None and names and _NAMELESS.match(names[0]) and frame[names[0]].dtype.kind not in "fiub":
        # A frame with nameless dates as its index, as to_csv writes it.
        found["ds"] = names[0]
    if found["ds"] is None:
        dated = [name for name in names if name not in found.values() and _holds_dates(frame[name])]
        found["ds"] = dated[0] if len(dated) == 1 else None
    taken = {name for name in found.values() if name}
    left = [name for name in names if name not in taken and not _NAMELESS.match(name)]
    if not found["close"] and not found["adjusted"]:
        numeric = [name for name in left if frame[name].dtype.kind in "fiu"]
        if len(numeric) != 1:
            raise InputError(
                f"{source}: no price column among: {', '.join(names) or 'none'}; name it with data.price_column "
                "(one row per asset and date: columns unique_id, ds, y)"
            )
        found["close"], left = numeric[0], [name for name in left if name != numeric[0]]
    close, raw = (found["adjusted"], found["close"]) if found["adjusted"] else (found["close"], None)
    assert close is not None
    extra = _extra(source, frame, left, config.extra)
    parts: Mapping[str, str | None] = {part: found[part] for part in ("open", "high", "low", "volume")}
    return Columns(close, found["unique_id"], found["ds"], raw, **parts, extra=extra)


def _holds_dates(cells: Any) -> bool:
    """Whether a column under another name holds text that reads as dates."""
    first = cells.dropna().iloc[:20]
    if not len(first) or first.dtype.kind in "fiub":
        return first.dtype.kind == "M"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        parsed = require("pandas", extra="prices").to_datetime(first, errors="coerce", format="mixed", utc=True)
    return not parsed.isna().any()


def _extra(source: str, frame: Any, left: Sequence[str], wanted: str) -> tuple[str, ...]:
    if wanted == "none":
        return ()
    if wanted == "all":
        return tuple(name for name in left if frame[name].dtype.kind in "fiub")
    names = tuple(name.strip() for name in wanted.split(",") if name.strip())
    for name in names:
        if name not in left:
            raise InputError(f"data.extra: {source} has no further column {name!r}{suggest(name, left)}")
        if frame[name].dtype.kind not in "fiub":
            raise InputError(f"data.extra: column {name!r} of {source} is not of numbers")
    return names
