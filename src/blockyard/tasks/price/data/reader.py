"""Prices out of files and frames: CSV, parquet, pandas, polars; long, wide or OHLCV, in the usual spellings.

bytes -> dialect.py -> header.py -> numbers.py    (sources.py: a table)
      -> columns.py                               which column plays which part
      -> clock.py -> checks.py                    an asset's rows, dated and checked
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from blockyard.errors import InputError, require
from blockyard.tasks.price.data.checks import check_asset
from blockyard.tasks.price.data.columns import Columns, find_columns
from blockyard.tasks.price.data.config import PriceDataConfig
from blockyard.tasks.price.data.covariates import check_static
from blockyard.tasks.price.data.reading import Reading
from blockyard.tasks.price.data.rhythm import find_rhythm
from blockyard.tasks.price.data.sources import SourceTable, read_table
from blockyard.tasks.price.data.steps import find_steps
from blockyard.tasks.price.data.table import Asset, Prices, show_ds

if TYPE_CHECKING:
    import pandas as pd

# What programs write for a name that is missing; NA, TRUE and NAN are tickers.
_NO_NAME = ("", "nan", "NaN", "<NA>", "None", "null", "#N/A")
DEFAULT_SOURCE = "S&P 500, daily (arch.data.sp500)"


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
        frame.attrs["name"] = "S&P 500"
        return _read([read_table(frame, 0, config)], DEFAULT_SOURCE, config, least)
    several = isinstance(source, Sequence) and not isinstance(source, str)
    tables = [read_table(one, number, config) for number, one in enumerate(source if several else [source])]
    if not tables:
        raise InputError("data.path names no file; give one, or leave it out for the default data")
    return _read(tables, ", ".join(table.name for table in tables), config, least)


def _read(tables: list[SourceTable], source: str, config: PriceDataConfig, least: int) -> Prices:
    assets: list[Asset] = []
    notes: list[str] = []
    understood: list[str] = []
    for table in tables:
        if len(table.frame) == 0:
            raise InputError(f"{table.name} has no rows; at least {least} are needed")
        clocks: dict[str, None] = {}
        series = find_columns(table.name, table.frame, table.levels, config, table.marked)
        for columns in series:
            for unique_id, rows in _by_asset(table.name, table.frame, columns, notes):
                reading = Reading(table.name, table.frame, columns, rows, unique_id, several_tables=len(tables) > 1)
                asset, clock, said = check_asset(reading, config, least)
                assets.append(asset)
                clocks[clock.said] = None
                notes += [*said, *_holes(asset)]
        understood += _understood(table, series, list(clocks))
    seen: set[str] = set()
    for asset in assets:
        if asset.unique_id in seen:
            raise InputError(f"{source}: asset {asset.unique_id!r} comes twice; each asset belongs into one file")
        seen.add(asset.unique_id)
    assets, said = _agreed(assets)
    return Prices(tuple(assets), source, (*merged(notes), *said), tuple(understood))


def _agreed(assets: list[Asset]) -> tuple[list[Asset], list[str]]:
    """Return the assets with what all of them say of their columns: which are in units of price, and which categories
    are."""
    names = dict.fromkeys(name for asset in assets for name in asset.extra)
    scales: dict[str, str] = {}
    for name in names:
        found = [asset.scales.get(name) for asset in assets if name in asset.extra]
        usual = max(set(found), key=found.count)
        if usual is not None:
            scales[name] = usual
    said = {
        "level": "{0} stays near the price: its feature is log({0}/close)",
        "size": "{0} grows with the price: its feature is {0}/close",
        "change": "{0} is the price's own change, which return_1 says, and is left out",
    }
    values = {name: [asset.static[name] for asset in assets] for name in (assets[0].static if assets else ())}
    categories = check_static(values)
    static = [f"{name} is the same for every asset and says nothing" for name, v in values.items() if len(set(v)) < 2]
    found_assets = []
    for asset in assets:
        mine = {name: scale for name, scale in scales.items() if name in asset.extra}
        words = {n: str(v) if n in categories else v for n, v in asset.static.items()}
        found_assets.append(replace(asset, scales=mine, static=words, categories=categories))
    return found_assets, [*(said[scale].format(name) for name, scale in scales.items()), *static]


def merged(notes: Sequence[str]) -> list[str]:
    """Return notes that say the same of several assets, in one line each."""
    whose: dict[str, list[str]] = {}
    for note in notes:
        name, _, text = note.partition(": ")
        whose.setdefault(text, []).append(name)
    return [
        f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}{': ' if text else ''}{text}"
        for text, names in whose.items()
    ]


def _understood(table: SourceTable, series: Sequence[Columns], clocks: Sequence[str]) -> list[str]:
    """Return how a table was read, in a line on its form, one on its columns and one on its clock."""
    first, more = series[0], len(series) - 1
    lines = [f"{Path(table.name).name}: {'; '.join(table.said)}"] if table.said else []
    others = f" (and {more} more asset{'s' * (more != 1)} with columns of their own)" if more else ""
    lines.append(f"columns: {first.describe()}{others}")
    lines += [f"columns: {word}" for word in dict.fromkeys(word for columns in series for word in columns.said)]
    return [*lines, f"clock: {' / '.join(clocks)}"]


def _holes(asset: Asset) -> list[str]:
    """Return a note on holes that are longer than what is usual between two rows, and on what becomes of them."""
    rhythm, steps = find_rhythm(asset.ds), find_steps(asset.ds)
    if rhythm is None or not steps.hole.any():
        return []
    rows = np.flatnonzero(steps.hole)
    missing = rhythm.each[rows - 1]
    share = missing.sum() / (missing.sum() + len(asset))
    longest = show_ds(asset.ds[rows[missing.argmax()] - 1])
    holes = f"{len(rows):,} hole{'s' * (len(rows) != 1)}"
    where = f"{missing.sum():,} rows are missing ({share:.0%}) in {holes}, the longest after {longest}"
    what = "returns over them are left out, and no label reaches over one"
    return [f"{asset.unique_id}: {where}, where the step is {rhythm.step}; {what}"]


def _by_asset(
    source: str, frame: pd.DataFrame, columns: Columns, notes: list[str]
) -> Iterable[tuple[str | None, np.ndarray]]:
    """Return row numbers of each asset, in the order in which assets appear."""
    if columns.asset is not None:
        # Where only other assets have a row, this one's cells are all empty.
        filled = ~frame[columns.values()].isna().all(axis=1).to_numpy(bool)
        if columns.future:
            # Rows that wait for their prices are told from those that have none later.
            filled |= frame[list(columns.future)].notna().all(axis=1).to_numpy(bool)
        if not filled.all() and filled.any():
            notes.append(f"{columns.asset}: {(~filled).sum():,} rows without any value of it are left out")
        return [(columns.asset, np.flatnonzero(filled) if filled.any() else np.arange(len(frame)))]
    if columns.unique_id is None:
        return [(None, np.arange(len(frame)))]
    ids = frame[columns.unique_id]
    missing = ids.isna().to_numpy(bool) | ids.isin(_NO_NAME).to_numpy(bool)
    if missing.any():
        row = int(np.flatnonzero(missing)[0]) + 1
        raise InputError(f"{source}: row {row}, column {columns.unique_id}: the asset's name is missing")
    codes, names = require("pandas", extra="prices").factorize(ids)
    order = np.argsort(codes, kind="stable")
    borders = np.searchsorted(codes[order], np.arange(len(names) + 1))
    return [(str(name), order[borders[i] : borders[i + 1]]) for i, name in enumerate(names)]
