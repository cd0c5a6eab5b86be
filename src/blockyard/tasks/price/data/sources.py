"""Tables out of files and frames: columns under plain names, numbers as numbers, and what was seen on the way."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockyard.errors import InputError, require
from blockyard.files import user_path
from blockyard.tasks.price.data.columns import text_columns
from blockyard.tasks.price.data.config import PriceDataConfig
from blockyard.tasks.price.data.dialect import Dialect, find_dialect
from blockyard.tasks.price.data.header import find_header
from blockyard.tasks.price.data.kinds import kind
from blockyard.tasks.price.data.names import FIELDS, simple
from blockyard.tasks.price.data.numbers import read_numbers
from blockyard.tasks.price.data.workbook import OTHERS, SUFFIXES, read_sheet, typed_column
from blockyard.text.compressed import open_bytes

if TYPE_CHECKING:
    import pandas as pd

# Lines of words that may stand below a table.
LINES_BELOW = 5


@dataclass(frozen=True)
class SourceTable:
    """One file or frame.

    Args:
        name: for errors and reports.
        frame: pandas, a plain index, names without doubles.
        levels: field and ticker of columns of a header of two levels.
        separator: what separated cells; None in frames.
        marked: columns of numbers that are features only if named; see `Numbers`.
        said: how it was read.
    """

    name: str
    frame: pd.DataFrame
    levels: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    separator: str | None = None
    marked: frozenset[str] = frozenset()
    said: tuple[str, ...] = ()


def read_table(source: Any, number: int, config: PriceDataConfig) -> SourceTable:
    """Return a table of whatever the user gave.

    Args:
        source: a path, or a pandas or polars frame.
        number: its place among the sources, for frames without a name.
        config: the user's names of columns, and the decimal mark.

    Raises:
        InputError: when it cannot be read.
    """
    table = _table(source, number)
    names = set(table.frame.columns) - text_columns(table.frame, config)
    try:
        numbers = read_numbers(
            table.frame,
            [name for name in table.frame.columns if name in names],
            separator=table.separator,
            decimal=config.decimal,
        )
    except InputError as error:
        raise InputError(f"{table.name}: {error}") from error
    return replace(table, frame=numbers.frame, marked=numbers.marked, said=(*table.said, *numbers.said))


def _table(source: Any, number: int) -> SourceTable:
    pandas = require("pandas", extra="prices")
    if isinstance(source, pandas.DataFrame):
        return _of_frame(_frame_name(source, number), source)
    if isinstance(source, pandas.Series):
        frame = source.to_frame(source.name if source.name is not None else "y")
        return _of_frame(_frame_name(source, number), frame)
    if type(source).__module__.split(".")[0] == "polars":
        frame = source.collect() if hasattr(source, "collect") else source
        return _of_frame(f"frame {number + 1}", pandas.DataFrame({n: _of_polars(frame[n]) for n in frame.columns}))
    if isinstance(source, str | Path):
        return _of_file(str(source), user_path(source))
    raise InputError(
        f"prices come from a file, a pandas or a polars frame, or a list of these, not from {type(source).__name__}"
    )


def _frame_name(frame: pd.DataFrame, number: int) -> str:
    return str(frame.attrs.get("name", f"frame {number + 1}"))


def _of_polars(column: Any) -> Any:
    """Return a column by way of numpy, so that polars' own extras are not needed; that way forgets time zones."""
    values = column.to_numpy()
    zone = getattr(column.dtype, "time_zone", None)
    if zone is None:
        return values
    return require("pandas", extra="prices").Series(values).dt.tz_localize("UTC").dt.tz_convert(zone)


def _of_file(name: str, path: Path) -> SourceTable:
    if not path.exists():
        raise InputError(f"{path} does not exist; give a CSV, Excel or parquet file of prices")
    if not path.is_file():
        raise InputError(f"{path} is not a file; give a CSV, Excel or parquet file of prices")
    suffix = path.suffix.lower()
    parquet = suffix in (".parquet", ".pq")
    if parquet:
        require("pyarrow", extra="prices")
    if suffix in OTHERS:
        raise InputError(f"{path}: {suffix} is not read; save the sheet as .xlsx or CSV")
    try:
        if parquet:
            return _of_frame(name, _read_parquet(path))
        return _read_sheet(name, path) if suffix in SUFFIXES else _read_text(name, path)
    except InputError:
        raise
    except Exception as error:
        # pandas and pyarrow raise a dozen kinds for a file that is not what its name says.
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        kind_of = "parquet" if parquet else "an Excel workbook" if suffix in SUFFIXES else "CSV"
        raise InputError(f"{path} cannot be read as {kind_of}: {first}") from error


def _read_parquet(path: Path) -> Any:
    pandas = require("pandas", extra="prices")
    frame = pandas.read_parquet(path)
    for column in range(frame.shape[1]):
        if pandas.api.types.is_string_dtype(frame.dtypes.iloc[column]):
            # Arrow leaves text unread until it is asked for: damage should show here.
            frame.iloc[:, column].to_numpy()
    return frame


def _read_text(name: str, path: Path) -> SourceTable:
    """Return a CSV file in the dialect, and with the header, that it shows; every cell as text."""
    pandas = require("pandas", extra="prices")
    with open_bytes(path) as file:
        content = file.read()
    try:
        dialect = find_dialect(content)
    except InputError as error:
        raise InputError(f"{path} cannot be read as CSV: {error}") from error
    del content
    try:
        header = find_header(dialect)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    if header.above >= dialect.lines[-1].end:
        frame = pandas.DataFrame({place: [] for place in range(len(header.names))}, dtype=str)
    else:
        frame = pandas.read_csv(
            io.StringIO(dialect.text, newline=""),
            sep=dialect.separator,
            header=None,
            skiprows=header.above,
            names=range(len(header.names)),
            dtype=str,
            keep_default_na=False,
            na_values=[""],
        )
    frame.columns = list(header.names)
    levels = {} if header.levels is None else {n: two for n, two in zip(header.names, header.levels) if two is not None}
    frame = frame.drop(columns=[header.names[place] for place in header.drop])
    rows = len(frame) - _lines_below(frame)
    below = [f"below the table: {str(cell)[:60]!r}" for cell in frame.iloc[rows:, 0]]
    said = (dialect.describe(), *header.said, *below)
    return SourceTable(name, frame.iloc[:rows], levels, dialect.separator, said=said)


def _read_sheet(name: str, path: Path) -> SourceTable:
    """Return a sheet of a workbook: its header is found as in text, its cells keep their types."""
    pandas = require("pandas", extra="prices")
    sheet = read_sheet(path)
    try:
        header = find_header(Dialect("", "", "", sheet.lines()))
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    rows = sheet.rows[header.above :]
    places = [place for place in range(len(header.names)) if place not in header.drop]
    frame = pandas.DataFrame({header.names[place]: typed_column([row[place] for row in rows]) for place in places})
    levels = {} if header.levels is None else {n: two for n, two in zip(header.names, header.levels) if two is not None}
    # Words below make the first column one of text.
    below = _lines_below(frame) if frame.shape[1] and frame.dtypes.iloc[0].kind == "O" else 0
    rest = len(frame) - below
    words = (f"below the table: {str(cell)[:60]!r}" for cell in frame.iloc[rest:, 0])
    # As between tabs, no mark within a cell is taken for more than it is.
    return SourceTable(name, frame.iloc[:rest], levels, "\t", said=(*sheet.said, *header.said, *words))


def _lines_below(frame: pd.DataFrame) -> int:
    """Return how many of the last lines are words in the first cell, such as "Downloaded from …", and nothing else."""
    if frame.shape[1] < 2 or not len(frame):
        return 0
    last = frame.iloc[-LINES_BELOW:]
    words = last.iloc[:, 1:].isna().all(axis=1) & last.iloc[:, 0].fillna("").map(lambda cell: kind(cell) == "text")
    return int(words.iloc[::-1].cummin().sum())


def _of_frame(name: str, frame: pd.DataFrame) -> SourceTable:
    """Return a frame of the user's: its index as columns, its columns under plain names."""
    pandas = require("pandas", extra="prices")
    levels: dict[str, tuple[str, str]] = {}
    said: tuple[str, ...] = ()
    if isinstance(frame.columns, pandas.MultiIndex):
        columns, levels = _flat(frame.columns)
        frame = frame.set_axis(columns, axis=1)
        said = ("columns of several levels",)
    named = [one for one in frame.index.names if one is not None]
    dated = frame.index.dtype.kind == "M" or isinstance(frame.index, pandas.PeriodIndex)
    if named or dated:
        if not named:
            frame = frame.rename_axis("ds")
        frame = frame.reset_index()
    frame = frame.rename(columns=str)
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise InputError(f"column {twice[0]!r} comes twice; rename or drop one")
    frame = frame.reset_index(drop=True)
    plain = {column: _plain(frame[column]) for column in frame.columns if not _is_plain(frame[column])}
    return SourceTable(name, frame.assign(**plain) if plain else frame, levels, said=said)


def _flat(columns: Any) -> tuple[list[str], dict[str, tuple[str, str]]]:
    """Return names for columns of several levels; field and ticker where one of two levels names fields, as yfinance's
    do."""
    entries = [tuple(map(str, entry)) for entry in columns]
    names = [" ".join(filter(None, entry)) for entry in entries]
    whole = {name: entry for name, entry in zip(names, entries) if all(entry)}
    if columns.nlevels == 2 and whole:
        for first, second in ((0, 1), (1, 0)):
            if all(simple(entry[first]) in FIELDS for entry in whole.values()):
                return names, {name: (entry[first], entry[second]) for name, entry in whole.items()}
    return names, {}


def _is_plain(cells: pd.Series) -> bool:
    pandas = require("pandas", extra="prices")
    return not isinstance(cells.dtype, pandas.ArrowDtype | pandas.CategoricalDtype)


def _plain(cells: pd.Series) -> Any:
    """Return a column of Arrow's types or of categories, as pandas' older ones."""
    pandas = require("pandas", extra="prices")
    if isinstance(cells.dtype, pandas.CategoricalDtype):
        return cells.astype(cells.cat.categories.dtype)
    if cells.dtype.kind == "M":
        zone = cells.dt.tz
        return cells.astype("datetime64[ns]" if zone is None else f"datetime64[ns, {zone}]")
    if cells.dtype.kind in "iu":
        return cells.astype("Int64")
    return cells.astype({"f": "Float64", "b": "boolean"}.get(cells.dtype.kind, object))
