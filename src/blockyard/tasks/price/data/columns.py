"""Which column of a table of prices plays which part, by its name or by what it holds."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from blockyard.errors import InputError, require, suggest
from blockyard.tasks.price.data.config import PriceDataConfig
from blockyard.tasks.price.data.kinds import TIME
from blockyard.tasks.price.data.names import CLOCKS, SPELLINGS, TIMES_OF_DAY, part_of, simple
from blockyard.tasks.price.data.units import epoch_unit, times_of_day

if TYPE_CHECKING:
    import pandas as pd

BARS = ("open", "high", "low", "volume")
# What is kept as an index by writers of CSV files and means nothing.
_NAMELESS = re.compile(r"^(Unnamed: \d+|index|level_\d+|)$")
# "AAPL.Close" or "Close_AAPL": a ticker and a part, whichever comes first.
_TWO = (
    re.compile(r"^(?P<ticker>.+)[._ :](?P<part>[^._ :]+)$"),
    re.compile(r"^(?P<part>[^._ :]+)[._ :](?P<ticker>.+)$"),
)


@dataclass(frozen=True)
class Columns:
    """Which column of a table plays which part; None where there is none.

    Args:
        close: the price to forecast.
        unique_id: names of assets.
        ds: dates.
        time: times of day beside dates.
        raw_close: unadjusted closes beside adjusted ones.
        open: and high, low, volume: as named.
        extra: further columns by the name that they get as features.
        future: columns that are known in advance.
        static: columns that say what an asset is.
        asset: whose columns these are, in a table with columns for each asset.
        said: what was noticed.
    """

    close: str
    unique_id: str | None
    ds: str | None
    raw_close: str | None
    open: str | None
    high: str | None
    low: str | None
    volume: str | None
    time: str | None = None
    extra: Mapping[str, str] = field(default_factory=dict)
    future: tuple[str, ...] = ()
    static: tuple[str, ...] = ()
    asset: str | None = None
    said: tuple[str, ...] = ()

    def values(self) -> list[str]:
        """Return the columns that hold the asset's values."""
        parts = (self.close, self.raw_close, self.open, self.high, self.low, self.volume)
        return [name for name in parts if name] + list(self.extra.values())

    def prices(self) -> list[str]:
        """Return the columns of prices."""
        return [name for name in (self.close, self.raw_close, self.open, self.high, self.low) if name]

    def describe(self) -> str:
        """Say it in words: "Date is ds, Price is close"; the parts that are named as they are called stay out."""
        parts = {"date": self.ds, "time of day": self.time, "asset": self.unique_id, "close": self.close}
        parts |= {"unadjusted close": self.raw_close} | {part: getattr(self, part) for part in BARS}
        known = ", ".join(f"{part} from {name}" for part, name in parts.items() if name)
        known += f"; features from {', '.join(self.extra.values())}" if self.extra else ""
        known += f"; known in advance: {', '.join(self.future)}" if self.future else ""
        return known + (f"; of the asset: {', '.join(self.static)}" if self.static else "")


def text_columns(frame: pd.DataFrame, config: PriceDataConfig) -> set[str]:
    """Return columns that stay text, by their names: ids, dates, times of day."""
    names = [str(name) for name in frame.columns]
    found = _named(names, config)
    return {name for name in (found["unique_id"], found["ds"], _time_of_day(frame, names, found)) if name in names}


def find_columns(
    source: str,
    frame: pd.DataFrame,
    levels: Mapping[str, tuple[str, str]],
    config: PriceDataConfig,
    marked: Collection[str] = (),
) -> tuple[Columns, ...]:
    """Return which column plays which part; several where each asset has columns of its own.

    Args:
        source: the file, for errors.
        frame: the table, numbers read.
        levels: field and ticker of columns of a header of two levels.
        config: names that the user gives.
        marked: columns of numbers that are features only if named.

    Raises:
        InputError: naming the columns there are, when there is no price among them or a named one is missing.
    """
    names = [str(name) for name in frame.columns]
    found = _named(names, config, source=source, levels=levels)
    _find_dates(frame, names, found)
    time = _time_of_day(frame, names, found)
    taken = {name for name in (*found.values(), time) if name}
    future, static = (_named_columns(source, frame, option, config, taken) for option in ("future", "static"))
    taken |= {*future, *static}
    left = [name for name in names if name not in taken and not _NAMELESS.match(name)]
    if not levels and not found["close"] and not found["adjusted"]:
        levels = _levels_in(left + [found[part] or "" for part in BARS if found[part]])
    if levels:
        levels = {name: level for name, level in levels.items() if name not in taken}
        _refuse_static(source, static)
        series = _by_ticker(source, frame, levels, found["ds"], time, config, marked)
        return tuple(replace(columns, future=future) for columns in series)
    if not found["close"] and not found["adjusted"]:
        numeric = [name for name in left if frame[name].dtype.kind in "fiu"]
        plain = [name for name in numeric if name not in marked]
        if len(plain or numeric) != 1:
            wide = _is_wide(frame, found, left, numeric)
            contrary = _below_zero(frame, numeric) if wide else ""
            if wide and not contrary:
                _refuse_static(source, static)
                one = (_one_ticker(name, found["ds"], time) for name in numeric)
                return tuple(replace(columns, future=future) for columns in one)
            raise InputError(
                f"{source}: no price column among: {', '.join(names) or 'none'}; name it with --data.price_column "
                f"(one row per asset and date: columns unique_id, ds, y{contrary})"
            )
        found["close"] = (plain or numeric)[0]
        left.remove((plain or numeric)[0])
    close, raw = (found["adjusted"], found["close"]) if found["adjusted"] else (found["close"], None)
    assert close is not None
    extra, said = _extra(source, frame, {name: name for name in left}, config.extra, marked)
    parts, empty = _bars(frame, found)
    return (
        Columns(
            close,
            found["unique_id"],
            found["ds"],
            raw,
            **parts,
            time=time,
            extra=extra,
            future=future,
            static=static,
            said=(*empty, *said),
        ),
    )


def _named_columns(
    source: str, frame: pd.DataFrame, option: str, config: PriceDataConfig, taken: Collection[str]
) -> tuple[str, ...]:
    """Return the columns that data.future or data.static names.

    Raises:
        InputError: for one that there is not, that plays another part, or that holds no numbers where it must.
    """
    names = tuple(name.strip() for name in (getattr(config, option) or "").split(",") if name.strip())
    for name in names:
        if name not in frame.columns:
            known = [str(column) for column in frame.columns]
            raise InputError(
                f"data.{option}: {source} has no column {name!r}{suggest(name, known)}; it has: {', '.join(known)}"
            )
        if name in taken:
            raise InputError(f"data.{option}: column {name!r} of {source} is a date, a name or a price already")
        if option == "static" and name in (config.future or "").split(","):
            raise InputError(f"data.static: column {name!r} is named in data.future, too")
        if option == "future" and frame[name].dtype.kind not in "fiub":
            raise InputError(f"data.future: column {name!r} of {source} is not of numbers; write 0 and 1, say")
    return names


def _refuse_static(source: str, static: Sequence[str]) -> None:
    if static:
        what = "has columns for each asset, where a row per asset and date is needed"
        raise InputError(f"data.static={','.join(static)}: {source} {what}")


def _named(
    names: Sequence[str],
    config: PriceDataConfig,
    *,
    source: str | None = None,
    levels: Mapping[str, tuple[str, str]] | None = None,
) -> dict[str, str | None]:
    """Return parts by the columns' names; with a source, a name of the user's that is missing is refused."""
    by_simple: dict[str, str] = {}
    for name in names:
        by_simple.setdefault(simple(name), name)
    found = {part: next((by_simple[s] for s in known if s in by_simple), None) for part, known in SPELLINGS.items()}
    for part, option in (("unique_id", config.id_column), ("ds", config.date_column), ("close", config.price_column)):
        if option is None or (part == "close" and levels):
            continue
        if option not in names and source is not None:
            raise InputError(f"{source} has no column {option!r}{suggest(option, names)}; it has: {', '.join(names)}")
        found[part] = option
        if part == "close":
            found["adjusted"] = None
    return found


def _find_dates(frame: pd.DataFrame, names: Sequence[str], found: dict[str, str | None]) -> None:
    """Find dates under a name of their own, where none is spelled as usual."""
    if found["ds"] is None and names and _NAMELESS.match(names[0]):
        # A frame with nameless dates as its index, as to_csv writes it.
        first = frame[names[0]]
        if first.dtype.kind not in "fiub" or epoch_unit(first) is not None:
            found["ds"] = names[0]
    if found["ds"] is None:
        dated = [name for name in names if name not in found.values() and _holds_dates(frame[name])]
        found["ds"] = dated[0] if len(dated) == 1 else None


def _holds_dates(cells: pd.Series) -> bool:
    """Return whether a column under another name holds text that reads as dates."""
    first = cells.dropna().iloc[:20]
    if not len(first) or first.dtype.kind in "fiub":
        return first.dtype.kind == "M"
    if all(TIME.match(str(cell)) for cell in first):
        # pandas takes 09:30 for that time of today.
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        parsed = require("pandas", extra="prices").to_datetime(first, errors="coerce", format="mixed", utc=True)
    return not parsed.isna().any()


def _time_of_day(frame: pd.DataFrame, names: Sequence[str], found: Mapping[str, str | None]) -> str | None:
    """Return a column of times of day that belongs to the dates."""
    if found["ds"] is None:
        return None
    for name in names:
        if simple(name) not in TIMES_OF_DAY or name == found["ds"] or times_of_day(frame[name]) is None:
            continue
        # Digits alone may count something else, unless rows of a day need them or they are the same for every day.
        row = [part for part in (found["ds"], found["unique_id"]) if part in names]
        cells = frame[name].astype(str).str.strip()
        same = cells.nunique() == 1 and (len(cells.iloc[0]) > 3 or not cells.iloc[0].strip("0"))
        if not cells.str.isdecimal().all() or same or frame.duplicated(row).any():
            return name
    return None


def _is_wide(frame: pd.DataFrame, found: Mapping[str, str | None], left: Sequence[str], numeric: Sequence[str]) -> bool:
    """Return whether a table is dates and a column per asset: nothing else stands in it."""
    ds = found["ds"]
    alone = not any(found[part] for part in ("unique_id", *BARS)) and list(left) == list(numeric) and len(numeric) > 1
    return alone and ds is not None and (_holds_dates(frame[ds]) or epoch_unit(frame[ds]) is not None)


def _below_zero(frame: pd.DataFrame, numeric: Sequence[str]) -> str:
    """Return where a table is no column per asset, since a value is no price; "" where all could be."""
    for name in numeric:
        bad = np.flatnonzero((frame[name] <= 0).fillna(False).to_numpy(bool))
        if bad.size:
            value = frame[name].iloc[int(bad[0])]
            return f"; or a column per asset with prices above 0, but {name} is {value:g} in row {int(bad[0]) + 1}"
    return ""


def _one_ticker(name: str, ds: str | None, time: str | None) -> Columns:
    said = ("no column of prices by name: each column is taken for an asset's price (else: --data.price_column)",)
    return Columns(name, None, ds, None, None, None, None, None, time=time, asset=name, said=said)


def _levels_in(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return field and ticker of names such as AAPL.Close, if every name is made so; else nothing."""
    for pattern in _TWO:
        matches = {name: pattern.match(name) for name in names}
        levels = {name: (m["part"], m["ticker"]) for name, m in matches.items() if m and part_of(m["part"])}
        if names and len(levels) == len(names) and any(part_of(part) == "close" for part, _ in levels.values()):
            return levels
    return {}


def _by_ticker(
    source: str,
    frame: pd.DataFrame,
    levels: Mapping[str, tuple[str, str]],
    ds: str | None,
    time: str | None,
    config: PriceDataConfig,
    marked: Collection[str],
) -> tuple[Columns, ...]:
    """Return columns of each ticker, in the order in which tickers appear."""
    series = []
    for ticker in dict.fromkeys(ticker for _, ticker in levels.values()):
        fields = {name: column for column, (name, whose) in levels.items() if whose == ticker}
        found: dict[str, str | None] = dict.fromkeys(SPELLINGS)
        for name, column in fields.items():
            part = part_of(name)
            if part is not None and found[part] is None:
                found[part] = column
        if config.price_column is not None:
            if config.price_column not in fields:
                raise InputError(
                    f"{source}: {ticker} has no column {config.price_column!r}{suggest(config.price_column, fields)}; "
                    f"it has: {', '.join(fields)}"
                )
            found["close"], found["adjusted"] = fields[config.price_column], None
        close = found["adjusted"] or found["close"]
        if close is None:
            raise InputError(
                f"{source}: no price among the columns of {ticker!r}: {', '.join(fields)}; where this is no asset, "
                "remove the line or column that names it"
            )
        raw = found["close"] if found["adjusted"] else None
        left = {name: column for name, column in fields.items() if column not in found.values()}
        extra, said = _extra(source, frame, left, config.extra, marked)
        parts, empty = _bars(frame, found)
        series.append(
            Columns(close, None, ds, raw, **parts, time=time, extra=extra, asset=ticker, said=(*empty, *said))
        )
    return tuple(series)


def _bars(frame: pd.DataFrame, found: Mapping[str, str | None]) -> tuple[dict[str, Any], list[str]]:
    """Open, high, low and volume, and a word on columns that are named so and hold nothing."""
    empty = [name for part in BARS if (name := found[part]) is not None and len(frame) and frame[name].isna().all()]
    parts = {part: None if found[part] in empty else found[part] for part in BARS}
    return parts, [f"{name} is empty and left out" for name in empty]


def _extra(
    source: str, frame: pd.DataFrame, left: Mapping[str, str], wanted: str, marked: Collection[str]
) -> tuple[dict[str, str], list[str]]:
    """Return further columns as asked for, by name, and a word on those that are left out though numbers."""
    if wanted == "none":
        return {}, []
    if wanted == "all":
        numeric = {name: column for name, column in left.items() if frame[column].dtype.kind in "fiub"}
        empty = [name for name, column in numeric.items() if len(frame) and frame[column].isna().all()]
        clocks = [n for n, column in numeric.items() if simple(n) in CLOCKS and epoch_unit(frame[column]) is not None]
        written = [name for name, column in numeric.items() if column in marked and name not in empty]
        said = [f"{name} is empty and left out" for name in empty]
        said += [f"{name}, numbers with marks or as text, is left out (else: --data.extra)" for name in written]
        said += [f"{name} repeats the date and is left out" for name in clocks]
        return {name: column for name, column in numeric.items() if name not in (*empty, *clocks, *written)}, said
    names = tuple(name.strip() for name in wanted.split(",") if name.strip())
    for name in names:
        if name not in left:
            raise InputError(f"data.extra: {source} has no further column {name!r}{suggest(name, left)}")
        if frame[left[name]].dtype.kind not in "fiub":
            raise InputError(f"data.extra: column {name!r} of {source} is not of numbers")
    return {name: left[name] for name in names}, []
