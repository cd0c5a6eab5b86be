"""Prices out of files and frames: CSV, parquet, pandas, polars; long or OHLCV, in the usual spellings."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from blockyard.data.prices.checks import Reading, check_asset
from blockyard.data.prices.config import PriceDataConfig
from blockyard.data.prices.table import Prices
from blockyard.errors import InputError, require, suggest

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
DEFAULT_SOURCE = "S&P 500, daily (arch.data.sp500)"
# What is kept as an index by writers of CSV files and means nothing.
# 1,234.5 and 1.234,5, every cell of a column; the latter where commas do not separate cells.
_WITH_COMMAS = re.compile(r"^[+-]?(\d+|\d{1,3}(,\d{3})+)(\.\d+)?$")
_WITH_DECIMAL_COMMA = re.compile(r"^[+-]?(\d+|\d{1,3}(\.\d{3})+)(,\d+)?$")
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


def read_prices(source: Any = None, config: PriceDataConfig | None = None, *, least: int = 2) -> Prices:
    """Read, check and adjust price series.

    Args:
        source: a path, a pandas or polars frame, or a list of these; None = the configuration's path, or without one
            the S&P 500 of the `arch` package.
        config: column names and strictness.
        least: rows that each asset must have.

    Raises:
        InputError: one line that names file, row and column of what is wrong.
    """
    config = config or PriceDataConfig()
    if source is None:
        source = list(config.path) if config.path else None
    if source is None:
        frame = require("arch.data.sp500", extra="prices").load()
        return _read([("S&P 500", frame)], DEFAULT_SOURCE, config, least)
    several = isinstance(source, Sequence) and not isinstance(source, str)
    tables = [_table(one, number) for number, one in enumerate(source if several else [source])]
    if not tables:
        raise InputError("data.path names no file; give one, or leave it out for the default data")
    return _read(tables, ", ".join(name for name, _ in tables), config, least)


def _read(tables: list[tuple[str, Any]], source: str, config: PriceDataConfig, least: int) -> Prices:
    assets, notes = [], []
    for name, frame in tables:
        frame = _with_index_as_column(frame)
        if len(frame) == 0:
            raise InputError(f"{name} has no rows; at least {least} are needed")
        columns = find_columns(name, frame, config)
        for unique_id, rows in _by_asset(name, frame, columns):
            reading = Reading(name, frame, columns, rows, unique_id, several_tables=len(tables) > 1)
            asset, said = check_asset(reading, config, least)
            assets.append(asset)
            notes += said
    seen: set[str] = set()
    for asset in assets:
        if asset.unique_id in seen:
            raise InputError(f"{source}: asset {asset.unique_id!r} comes twice; each asset belongs into one file")
        seen.add(asset.unique_id)
    return Prices(tuple(assets), source, tuple(notes))


def _table(source: Any, number: int) -> tuple[str, Any]:
    """A name and a pandas frame of whatever the user gave."""
    pandas = require("pandas", extra="prices")
    if isinstance(source, pandas.DataFrame):
        return _frame_name(source, number), source
    if isinstance(source, pandas.Series):
        return _frame_name(source, number), source.to_frame(source.name if source.name is not None else "y")
    if type(source).__module__.split(".")[0] == "polars":
        frame = source.collect() if hasattr(source, "collect") else source
        # By way of numpy, so that polars' own extras are not needed.
        return f"frame {number + 1}", pandas.DataFrame({name: frame[name].to_numpy() for name in frame.columns})
    if isinstance(source, str | Path):
        return str(source), _read_file(Path(source).expanduser())
    raise InputError(
        f"prices come from a file, a pandas or a polars frame, or a list of these, not from {type(source).__name__}"
    )


def _frame_name(frame: Any, number: int) -> str:
    return str(frame.attrs.get("name", f"frame {number + 1}"))


def _read_file(path: Path) -> Any:
    pandas = require("pandas", extra="prices")
    if not path.exists():
        raise InputError(f"{path} does not exist; give a CSV or parquet file of prices")
    if not path.is_file():
        raise InputError(f"{path} is not a file; give a CSV or parquet file of prices")
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            require("pyarrow", extra="prices")
            return pandas.read_parquet(path)
        return _read_csv(path)
    except InputError:
        raise
    except Exception as error:
        # pandas and pyarrow raise a dozen kinds for a file that is not what its name says.
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        kind = "parquet" if path.suffix.lower() in (".parquet", ".pq") else "CSV"
        raise InputError(f"{path} cannot be read as {kind}: {first}") from error


def _read_csv(path: Path) -> Any:
    """A CSV file in the dialect that it shows: what separates cells, and how numbers are written."""
    pandas = require("pandas", extra="prices")
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        header = file.readline()
    separator = max((",", ";", "\t", "|"), key=header.count)
    if separator not in header and len(header.split()) > 1:
        separator = r"\s+"
    frame = pandas.read_csv(path, encoding="utf-8-sig", sep=separator)
    for name in frame.columns:
        cells = frame[name].dropna().astype(str).str.strip()
        if frame[name].dtype.kind in "fiub" or not len(cells):
            continue
        # pandas' own `thousands` would take 12,5 for 125, and 31.01.2024 for a number.
        if separator != "," and cells.str.match(_WITH_DECIMAL_COMMA).all():
            plain = cells.str.replace(".", "").str.replace(",", ".")
        elif cells.str.match(_WITH_COMMAS).all():
            plain = cells.str.replace(",", "")
        else:
            continue
        frame[name] = pandas.to_numeric(plain).reindex(frame.index)
    return frame


def _with_index_as_column(frame: Any) -> Any:
    """Dates (or ids) that a frame carries in its index become columns like the others."""
    named = [name for name in frame.index.names if name is not None]
    if named or frame.index.dtype.kind == "M":
        if not named:
            frame = frame.rename_axis("ds")
        frame = frame.reset_index()
    frame = frame.rename(columns=str)
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise InputError(f"column {twice[0]!r} comes twice; rename or drop one")
    return frame.reset_index(drop=True)


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


def _by_asset(source: str, frame: Any, columns: Columns) -> Iterable[tuple[str | None, np.ndarray]]:
    """Row numbers of each asset, in the order in which assets appear."""
    if columns.unique_id is None:
        return [(None, np.arange(len(frame)))]
    ids = frame[columns.unique_id]
    if ids.isna().any():
        row = int(np.flatnonzero(ids.isna().to_numpy())[0]) + 1
        raise InputError(f"{source}: row {row}, column {columns.unique_id}: the asset's name is missing")
    codes, names = require("pandas", extra="prices").factorize(ids)
    order = np.argsort(codes, kind="stable")
    borders = np.searchsorted(codes[order], np.arange(len(names) + 1))
    return [(str(name), order[borders[i] : borders[i + 1]]) for i, name in enumerate(names)]
