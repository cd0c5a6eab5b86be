"""Prices out of files and frames: CSV, parquet, pandas, polars; long or OHLCV, in the usual spellings."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from blockyard.errors import InputError, require
from blockyard.files import user_path
from blockyard.tasks.price.data.checks import Reading, check_asset
from blockyard.tasks.price.data.columns import Columns, find_columns
from blockyard.tasks.price.data.config import PriceDataConfig
from blockyard.tasks.price.data.table import Prices
from blockyard.text.compressed import open_bytes

DEFAULT_SOURCE = "S&P 500, daily (arch.data.sp500)"
# 1,234.5 and 1.234,5, every cell of a column; the latter where commas do not separate cells.
_WITH_COMMAS = re.compile(r"^[+-]?(\d+|\d{1,3}(,\d{3})+)(\.\d+)?$")
_WITH_DECIMAL_COMMA = re.compile(r"^[+-]?(\d+|\d{1,3}(\.\d{3})+)(,\d+)?$")


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
        return str(source), _read_file(user_path(source))
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
    with io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig", errors="replace") as file:
        header = file.readline()
    separator = max((",", ";", "\t", "|"), key=header.count)
    if separator not in header and len(header.split()) > 1:
        separator = r"\s+"
    with open_bytes(path) as content:
        frame = pandas.read_csv(content, encoding="utf-8-sig", sep=separator)
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
