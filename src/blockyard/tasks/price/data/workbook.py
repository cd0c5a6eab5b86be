"""Sheets of Excel's workbooks (.xlsx, .xlsm) as rows of typed cells, and as lines of text for the search of a header.

What a spreadsheet stores as a number or a date is taken as that, however it is shown; text is read as in CSV files.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockyard.errors import InputError, require
from blockyard.tasks.price.data.dialect import SAMPLE_LINES, Line
from blockyard.tasks.price.data.kinds import NOTHING

SUFFIXES = (".xlsx", ".xlsm")
# Written by spreadsheets, too, and not read.
OTHERS = (".xls", ".xlsb", ".ods", ".numbers")


@dataclass(frozen=True)
class Sheet:
    """The rows of a sheet that hold anything.

    Args:
        rows: cells as Python's own values, None where one is empty.
        said: which sheet it is, and which there are beside it.
    """

    rows: list[tuple[Any, ...]]
    said: tuple[str, ...]

    def lines(self) -> tuple[Line, ...]:
        """Return the first rows as text."""
        found = []
        for number, row in enumerate(self.rows[:SAMPLE_LINES], 1):
            cells = tuple(_text(cell) for cell in row)
            found.append(Line(cells, number, cells))
        return tuple(found)


def read_sheet(path: Path) -> Sheet:
    """Return the first sheet of a workbook that holds anything.

    Raises:
        MissingExtra: without openpyxl.
        InputError: when all sheets are empty.
    """
    openpyxl = require("openpyxl", extra="excel")
    book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    try:
        sheets = book.worksheets
        for sheet in sheets:
            # Some writers say less than the sheet holds.
            sheet.reset_dimensions()
            rows = _filled(list(sheet.iter_rows(values_only=True)))
            if rows:
                others = [repr(other.title) for other in sheets if other is not sheet]
                beside = f"; not read: {', '.join(others[:5])}{' …' * (len(others) > 5)}" if others else ""
                return Sheet(rows, (f"sheet {sheet.title!r}{beside}",))
    finally:
        book.close()
    raise InputError(f"{path} has no sheet that holds anything")


def typed_column(cells: Sequence[Any]) -> Any:
    """Return a column of a sheet for a frame: of numbers, of dates, or of text.

    Args:
        cells: as a `Sheet` holds them.
    """
    pandas = require("pandas", extra="prices")
    cells = [None if isinstance(cell, str) and cell.strip() in NOTHING else cell for cell in cells]
    kinds = {type(cell) for cell in cells if cell is not None}
    if kinds <= {int, float}:
        return pandas.Series(cells, dtype=object).astype("float64")
    if kinds <= {dt.datetime, dt.date}:
        return pandas.to_datetime(pandas.Series(cells, dtype=object))
    return pandas.Series([None if cell is None else _text(cell) for cell in cells], dtype=object)


def _filled(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Return rows that hold anything, without the columns that hold nothing in any."""
    rows = [row for row in rows if any(cell is not None for cell in row)]
    width = max(map(len, rows), default=0)
    used = [place for place in range(width) if any(place < len(row) and row[place] is not None for row in rows)]
    return [tuple(row[place] if place < len(row) else None for place in used) for row in rows]


def _text(cell: Any) -> str:
    """Return a cell as CSV files write it."""
    if cell is None:
        return ""
    if isinstance(cell, dt.datetime):
        return str(cell).removesuffix(" 00:00:00")
    return str(cell).strip()
