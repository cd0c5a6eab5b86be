"""Numbers as people write them: 1,234.5 and 1.234,5, 1.25M, 0.45%, $187.15, and marks for no value.

A file has one decimal mark. Cells that can be read in one way only say which it is: 12,50 and 1.234,5 or 12.50 and
1,234.5. Cells such as 1.050 can be read in two ways and follow the others of the file.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from blockyard.errors import InputError, require
from blockyard.tasks.price.data.kinds import MARKS, NOTHING
from blockyard.tasks.price.data.names import part_of

if TYPE_CHECKING:
    import pandas as pd

Mark = Literal["point", "comma"]
# Sure with a decimal comma, sure with a decimal point, and the two that may be either; all without sign.
_COMMA = re.compile(r"^(?:\d+|\d{1,3}(?:\.\d{3})+)?,\d+$|^\d{1,3}(?:\.\d{3}){2,}$")
_POINT = re.compile(r"^(?:\d+|\d{1,3}(?:,\d{3})+)?\.\d+$|^\d+\.$|^\d{1,3}(?:,\d{3}){2,}$")
_COMMA_OR_GROUP, _POINT_OR_GROUP = re.compile(r"^[1-9]\d{0,2},\d{3}$"), re.compile(r"^[1-9]\d{0,2}\.\d{3}$")
_DIGITS = re.compile(r"^[+-]?[\d.,]+$")
_WHOLE = re.compile(r"^\d+$")
# Sign, currency, the number itself, exponent, and what stands for a power of ten.
_CELL = re.compile(
    r"^(?P<sign>[+−-]?)\s?[$€£¥]?(?P<body>\d[\d.,'’\s]*|[.,]\d+)(?P<power>[eE][+-]?\d{1,3})?\s?(?P<unit>[kKMBT%]?)[$€£¥]?$"
)
_GROUPED = re.compile(r"^\d{1,3}(?:['’\s]\d{3})+(?=$|[.,])")
_UNITS = {"": 0, "k": 3, "K": 3, "M": 6, "B": 9, "T": 12, "%": -2}
_TRUTH = {"True": True, "TRUE": True, "true": True, "False": False, "FALSE": False, "false": False}
# Cells of a column that must be numbers for the column to be one of numbers with faults.
_MOST = 0.5


@dataclass(frozen=True)
class _Cell:
    sign: str
    body: str
    power: int

    @property
    def mark(self) -> Mark | None:
        """The decimal mark, where the cell can be read in one way only."""
        if _COMMA.match(self.body) and not _COMMA_OR_GROUP.match(self.body):
            return "comma"
        if _POINT.match(self.body) and not _POINT_OR_GROUP.match(self.body):
            return "point"
        return None

    def text(self, mark: Mark) -> str | None:
        """Return the number as Python writes it, None where it cannot be one with this decimal mark."""
        plain = self.body
        if mark == "comma":
            if not (_WHOLE.match(plain) or _COMMA.match(plain) or _POINT_OR_GROUP.match(plain)):
                return None
            plain = plain.replace(".", "").replace(",", ".")
        else:
            if not (_WHOLE.match(plain) or _POINT.match(plain) or _COMMA_OR_GROUP.match(plain)):
                return None
            plain = plain.replace(",", "")
        return f"{self.sign}{plain}e{self.power}" if self.power else f"{self.sign}{plain}"


@dataclass
class _Column:
    """A column of text on its way to numbers.

    Args:
        plain: what pandas makes of it, NaN where it cannot.
        odd: places of cells that pandas cannot read, though they hold something.
        cells: the text.
    """

    plain: Any
    odd: np.ndarray
    cells: pd.Series
    parsed: dict[str, _Cell | None]

    def parse(self) -> bool:
        """Take the cells apart, and tell whether most of them can be numbers: the rest is for errors to name."""
        self.parsed = {text: _parse(text) for text in self.cells[~_nothing(self.cells)].unique()}
        read = [c for c in self.parsed.values() if c is not None and (c.text("point") or c.text("comma"))]
        return len(read) > _MOST * len(self.parsed)

    def is_marked(self) -> bool:
        """Return whether more than digits, signs and decimal marks stand in it, or a mark for no value that pandas has
        not."""
        if self.cells.isin(MARKS).any():
            return True
        return bool(self.odd.size) and not all(_DIGITS.match(text) for text in self.parsed)

    @property
    def mark(self) -> Mark | None:
        """The decimal mark of most cells that can be read in one way only; the others are wrong. None without any."""
        marks = [cell.mark for cell in self.parsed.values() if cell is not None and cell.mark is not None]
        return None if not marks else "comma" if marks.count("comma") > len(marks) / 2 else "point"

    def example(self, pattern: re.Pattern[str]) -> str:
        """Return the first number of a form, or ""."""
        return next((c.body for c in self.parsed.values() if c is not None and pattern.match(c.body)), "")


@dataclass(frozen=True)
class Numbers:
    """A table whose columns of written numbers are numbers.

    Args:
        frame: the table.
        marked: columns whose numbers are written with units, currencies, blanks or marks for no value, or stood as text
            in a frame: they play a part by their name, and are features only if named.
        said: what was seen.
    """

    frame: pd.DataFrame
    marked: frozenset[str]
    said: tuple[str, ...]


def read_numbers(
    frame: pd.DataFrame, names: Collection[str], *, separator: str | None, decimal: Literal["auto", "point", "comma"]
) -> Numbers:
    """Replace columns of written numbers by numbers, in a copy of the frame.

    Args:
        frame: the table.
        names: its columns that may hold numbers.
        separator: what separates cells in the file; where it is a comma, a lone comma within a cell groups thousands.
            None for frames, whose columns have types.
        decimal: the file's decimal mark, auto = as its cells say.

    Raises:
        InputError: when a cell such as 1.050 can be read in two ways and the file does not say which.
    """
    columns = {name: column for name in names if (column := _column(frame[name])) is not None}
    frame = frame.copy(deep=False)
    truths = [name for name, column in columns.items() if column.odd.size and _is_truth(column.cells)]
    for name in truths:
        frame[name] = columns.pop(name).cells.map(_TRUTH).astype(bool)
    numeric: dict[str, _Column] = {}
    for name, column in columns.items():
        if column.odd.size and column.parse():
            numeric[name] = column
    marks = {column.mark for column in numeric.values()}
    if decimal != "auto" or "comma" in marks or None in marks:
        # Only now do columns matter that pandas can read, where points may group thousands.
        for name, column in columns.items():
            if not column.odd.size and column.cells.str.contains(".", regex=False).any() and column.parse():
                numeric[name] = column
    marked = [name for name, column in columns.items() if separator is None or column.is_marked()]
    weak = [name for name in marked if part_of(name) is None]
    of_file: Mark = _mark_of_file(numeric, separator or ",", weak) if decimal == "auto" else decimal
    said = ["decimal comma"] if numeric and of_file == "comma" else []
    for name, column in columns.items():
        if name in numeric:
            mark: Mark = of_file if decimal != "auto" else column.mark or of_file
            frame[name] = _numbers(column, mark)
            said += _units(name, column, mark)
        elif not column.odd.size:
            frame[name] = column.plain
    return Numbers(frame, frozenset(marked), tuple(said))


def _column(cells: pd.Series) -> _Column | None:
    """Return a column of text, with what pandas makes of it; None for columns that are numbers, dates or categories."""
    pandas = require("pandas", extra="prices")
    if not (cells.dtype == object or pandas.api.types.is_string_dtype(cells.dtype)):
        return None
    if cells.dtype == object and not cells.map(lambda value: isinstance(value, str)).any():
        return None
    text = cells.astype(str).where(cells.notna(), "").str.strip()
    try:
        plain = pandas.to_numeric(text, errors="coerce")
    except (OverflowError, ValueError):
        # Hundreds of digits: said where the column is used.
        return None
    odd = np.flatnonzero(plain.isna().to_numpy() & ~_nothing(text))
    return _Column(plain, odd, text, {})


def _mark_of_file(numeric: dict[str, _Column], separator: str, weak: Collection[str]) -> Mark:
    """Return what columns mean whose every number can be read in two ways, or in one.

    Args:
        numeric: columns of numbers.
        separator: what separated cells.
        weak: columns that may have come from elsewhere, with a mark of their own: they decide nothing, but what they
            contradict is not settled.

    Raises:
        InputError: when the others do not say so, either.
    """
    marks = {column.mark for name, column in numeric.items() if name not in weak} - {None}
    if len(marks) == 1:
        return "comma" if "comma" in marks else "point"
    open_ = {name: column for name, column in numeric.items() if column.mark is None}
    commas = [c.example(_COMMA_OR_GROUP) for c in open_.values()]
    points = [c.example(_POINT_OR_GROUP) for c in open_.values()]
    # Between commas a lone comma can only group thousands, so a point is the decimal mark.
    usual: Mark = "comma" if any(commas) and separator != "," else "point"
    contrary = any(commas) and any(points) and separator != ","
    others = {column.mark for name, column in numeric.items() if name in weak} - {None, usual}
    for name, comma, point in zip(open_, commas, points):
        if (comma or point) and (marks or contrary or others):
            raise InputError(
                f"column {name}: {comma or point!r} can be read in two ways, and the file's other numbers do not say "
                "which; pass --data.decimal point or --data.decimal comma"
            )
    return usual


def _nothing(text: Any) -> np.ndarray:
    found: np.ndarray = text.isin(NOTHING).to_numpy(bool)
    return found


def _is_truth(cells: pd.Series) -> bool:
    return set(cells.unique()) <= set(_TRUTH)


def _parse(text: str) -> _Cell | None:
    match = _CELL.match(text)
    if match is None or len(text) > 400:
        return None
    body = match["body"].strip()
    if _GROUPED.match(body):
        body = re.sub(r"['’\s]", "", body)
    power = int(match["power"][1:]) if match["power"] else 0
    return _Cell("-" if match["sign"] in ("-", "−") else "", body, power + _UNITS[match["unit"]])


def _numbers(column: _Column, mark: Mark) -> Any:
    """Return the column as numbers; cells that are none stay text, so that an error can show them."""
    pandas = require("pandas", extra="prices")
    texts = {text: None if cell is None else cell.text(mark) for text, cell in column.parsed.items()}
    nothing = _nothing(column.cells)
    wrong = column.cells.map(lambda text: text not in NOTHING and texts.get(text) is None).to_numpy(bool)
    plain = column.cells.map(lambda text: texts.get(text) or "nan").where(~nothing & ~wrong, "nan")
    numbers = pandas.to_numeric(plain, errors="coerce")
    if not wrong.any():
        return numbers
    mixed = numbers.astype(object)
    mixed[wrong] = column.cells[wrong]
    return mixed


def _units(name: str, column: _Column, mark: Mark) -> list[str]:
    """Return what to say of numbers that are written with a unit."""
    for text, cell in column.parsed.items():
        if cell is not None and text[-1:] in _UNITS and (number := cell.text(mark)) is not None:
            return [f"{name}: {text} is {float(number):,.10g}"]
    return []
