"""Times as numbers and marks: counted from 1970, in a unit that the numbers tell, or from midnight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from blockyard.errors import require
from blockyard.tasks.price.data.kinds import TIME

if TYPE_CHECKING:
    import pandas as pd

# Unit -> nanoseconds in it.
UNITS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
# 1973-03-03 and 2261-07-16 (nanoseconds end in 2262) in seconds. Dates such as 20240131 and row numbers lie below it.
FIRST, LAST = 1e8, 9.2e9
# The days of spreadsheets that are taken for dates: 1954-10-03 up to 2099-12-31.
DAYS = (20_000.0, 73_051.0)
# Two years, in seconds: more than lies between two rows of any series.
LEAP = 6.3e7


def epoch_unit(cells: pd.Series) -> str | None:
    """Return the unit of a column of numbers, or of text that is all numbers, as times since 1970; None when it is no
    such.

    The largest number decides (units lie a thousandfold apart), and the others must be of the same unit: from 1900 on,
    and without a leap to numbers that would be another unit's.

    Args:
        cells: a column.
    """
    pandas = require("pandas", extra="prices")
    if cells.dtype.kind in "Mmb" or not len(cells):
        return None
    if cells.dtype.kind not in "fiu":
        # As text, before a long column is read for nothing.
        if not str(cells.iloc[0]).strip().lstrip("-")[:1].isdigit():
            return None
        try:
            cells = pandas.to_numeric(cells.astype(str).str.strip(), errors="coerce")
        except (OverflowError, ValueError):
            return None
    values = cells.to_numpy(np.float64, na_value=np.nan)
    if not np.isfinite(values).all():
        return None
    for unit, nanoseconds in UNITS.items():
        scale = 1e9 / nanoseconds
        if FIRST * scale <= values.max() <= LAST * scale:
            same = values.min() >= -2.3e9 * scale and not _leaps(values / scale) and not _is_written(values)
            return unit if same else None
    return None


def _leaps(seconds: np.ndarray) -> bool:
    """Return whether years lie between the times that can be of this unit alone and earlier ones."""
    late = seconds >= FIRST
    return not bool(late.all()) and float(seconds[late].min() - seconds[~late].max()) > LEAP


def _is_written(values: np.ndarray) -> bool:
    """Return whether all numbers are dates and times in digits, 202401311530, which as milliseconds would lie in
    1976."""
    if not ((values >= 190001010000) & (values < 220001010000)).all():
        return False
    whole = values.astype(np.int64)
    month, day, hour, minute = whole // 10**6 % 100, whole // 10**4 % 100, whole // 100 % 100, whole % 100
    valid = (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31) & (hour < 24) & (minute < 60)
    return bool(valid.all())


def excel_days(cells: pd.Series) -> np.ndarray | None:
    """Return a column as days that spreadsheets count from 1899-12-30, with the time as a fraction; None when it is no
    such.

    Args:
        cells: a column of numbers, or of text that is all numbers.
    """
    pandas = require("pandas", extra="prices")
    if cells.dtype.kind in "Mmb" or not len(cells):
        return None
    if cells.dtype.kind not in "fiu":
        if not str(cells.iloc[0]).strip()[:1].isdigit():
            return None
        try:
            cells = pandas.to_numeric(cells.astype(str).str.strip(), errors="coerce")
        except (OverflowError, ValueError):
            return None
    values: np.ndarray = cells.to_numpy(np.float64, na_value=np.nan)
    return values if bool(((values >= DAYS[0]) & (values < DAYS[1])).all()) else None


def times_of_day(cells: pd.Series) -> Any:
    """Return a column of times of day as time since midnight, or None where a cell is none.

    Read are 9:30, 09:30:00.5 and 9:30 PM, and in digits alone 930 and 0930 or, where some have more, 93000 and 093000.

    Args:
        cells: a column.
    """
    pandas = require("pandas", extra="prices")
    text = cells.astype(str).str.strip()
    if cells.isna().any() or not len(text):
        return None
    if TIME.match(text.iloc[0]):
        if not text.map(lambda cell: TIME.match(cell) is not None).all():
            return None
        half = text.str.extract(r"(?i)([ap])\.?m\.?$")[0].str.lower()
        plain = text.str.replace(r"(?i) ?[ap]\.?m\.?$", "", regex=True).str.replace(",", ".")
        found = pandas.to_timedelta(plain.where(plain.str.count(":") > 1, plain + ":00"), errors="coerce")
        hours = found.dt.components.hours
        found += pandas.to_timedelta(
            12 * ((half == "p") & (hours < 12)) - 12 * ((half == "a") & (hours == 12)), unit="h"
        )
        return None if found.isna().any() or (found >= pandas.Timedelta(days=1)).any() else found
    if not text.str.fullmatch(r"\d{1,6}").all():
        return None
    whole = text.astype("int64")
    # 930 is half past nine, unless others have seconds, too.
    whole = whole if (text.str.len() > 4).any() else whole * 100
    hours, minutes, seconds = whole // 10000, whole // 100 % 100, whole % 100
    if ((hours > 23) | (minutes > 59) | (seconds > 59)).any():
        return None
    return pandas.to_timedelta(hours * 3600 + minutes * 60 + seconds, unit="s")
