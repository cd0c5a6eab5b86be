"""Dates and times of rows, on the clock of the file.

2024-01-08 00:00:00+09:00   a daily bar belongs to its local date: 2024-01-08, not 2024-01-07 15:00
2024-01-08 09:30:00-05:00   a market with sessions keeps its local time, so that every session starts alike
2023-10-29 02:30:00+01:00   a market that never closes keeps UTC, where summer time moves nothing; tables show +01:00
1704067200000               seconds, milli-, micro- or nanoseconds since 1970, in UTC
20240108, 20240108 0930     dates in digits
45292, 45292.4              in a column whose name says date: days since 1899-12-30, as spreadsheets count them
0, 1, 2                     anything else whole numbers the rows
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from blockyard.errors import InputError, require
from blockyard.tasks.price.data.config import PriceDataConfig
from blockyard.tasks.price.data.kinds import NOTHING, OFFSET
from blockyard.tasks.price.data.names import says_date
from blockyard.tasks.price.data.reading import Reading
from blockyard.tasks.price.data.units import NAMES, UNITS, epoch_unit, excel_days, times_of_day

if TYPE_CHECKING:
    import pandas as pd

_DOTTED = re.compile(r"^\d{1,2}\.\d{1,2}\.\d{4}")
# 2024年1月31日 and 2024년 1월 31일, as Chinese, Japanese and Korean count years, months and days.
_COUNTED = re.compile(r"^\s*(\d{4})\s*[年년]\s*(\d{1,2})\s*[月월]\s*(\d{1,2})\s*[日일号號]\s*")
_SLASHED = re.compile(r"^\s*(\d{1,2})[/-](\d{1,2})[/-]\d{2,4}")
# Digits alone: date, and date with time, in the lengths that are read.
_DIGITS = {8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
_DIGITS_APART = {(8, 4): "%Y%m%d %H%M", (8, 6): "%Y%m%d %H%M%S"}
HOUR = np.timedelta64(1, "h")
# The least step of bars of a day: summer time makes some days of 23 hours.
DAILY = 20 * HOUR


@dataclass(frozen=True)
class Clock:
    """When the rows of an asset are.

    Args:
        ds: datetime64[ns] without a time zone, or int64 for rows without dates; [T].
        said: which clock that is.
        zone: the file's own clock, where `ds` is UTC and the file is not: a zone's name or an offset such as +01:00.
        asks: what only the user knows of it, or "".
    """

    ds: np.ndarray
    said: str
    zone: str | None = None
    asks: str = ""


def read_clock(reading: Reading, config: PriceDataConfig) -> Clock:
    """Return the dates of an asset's rows.

    Raises:
        InputError: for a date that is missing, or is not written like the first.
    """
    column = reading.columns.ds
    if column is None:
        return Clock(np.arange(len(reading.rows), dtype=np.int64), "no dates: rows are numbered")
    cells = _filled(reading, column)
    if (unit := epoch_unit(cells)) is not None:
        return Clock(_since_1970(cells, unit), f"{NAMES[unit]} since 1970, UTC")
    if excel_days(reading.frame[column].dropna()) is not None:
        return _in_excels_days(reading, column, cells)
    if cells.dtype.kind in "iuf" or _all_digits(cells):
        return _in_digits(reading, column, cells, config)
    return _written(reading, column, cells, config)


def in_zone(ds: np.ndarray, zone: str | None) -> np.ndarray:
    """Return moments of `Clock.ds` as the file's own clock shows them."""
    if zone is None or ds.dtype.kind != "M":
        return ds
    pandas = require("pandas", extra="prices")
    if zone[:1] in "+-":
        sign = -1 if zone.startswith("-") else 1
        hours, minutes = zone[1:].split(":")
        moved: np.ndarray = ds + sign * (int(hours) * HOUR + np.timedelta64(int(minutes), "m"))
        return moved
    shown = pandas.DatetimeIndex(ds).tz_localize("UTC").tz_convert(zone).tz_localize(None)
    found: np.ndarray = shown.to_numpy("datetime64[ns]")
    return found


def _filled(reading: Reading, column: str) -> Any:
    """Return the cells of a column of dates; none may be missing."""
    cells = reading.frame[column].iloc[reading.rows]
    missing = cells.isna().to_numpy(bool)
    if cells.dtype.kind not in "iufMm":
        missing = missing | cells.isin(NOTHING).to_numpy(bool)
    if missing.any():
        reading.wrong(int(np.flatnonzero(missing)[0]), column, "the date is missing")
    pandas = require("pandas", extra="prices")
    if isinstance(cells.dtype, pandas.PeriodDtype):
        return cells.dt.to_timestamp()
    if cells.dtype.kind not in "iufMm" and _COUNTED.match(str(cells.iloc[0])):
        return cells.astype(str).str.replace(_COUNTED, r"\1-\2-\3 ", regex=True).str.strip()
    return cells


def _since_1970(cells: pd.Series, unit: str) -> np.ndarray:
    pandas = require("pandas", extra="prices")
    numbers = cells if cells.dtype.kind in "fiu" else pandas.to_numeric(cells.astype(str).str.strip())
    if numbers.dtype.kind in "iu":
        whole: np.ndarray = numbers.to_numpy(np.int64) * UNITS[unit]
        return whole.astype("datetime64[ns]")
    # A float of seconds holds a quarter of a microsecond: what lies below is noise.
    grain = max(UNITS[unit], 10**3) if unit != "s" else 10**3
    fine = np.rint(numbers.to_numpy(np.float64) * (UNITS[unit] / grain)).astype(np.int64) * grain
    found: np.ndarray = fine.astype("datetime64[ns]")
    return found


def _in_excels_days(reading: Reading, column: str, cells: pd.Series) -> Clock:
    """Return days as spreadsheets count them, to the second: a cell has not more digits."""
    days = excel_days(cells)
    if not says_date(column) or days is None:
        raise InputError(
            f"{reading.source}: column {column} holds {cells.iloc[0]} …, which may be a spreadsheet's days or numbers "
            "of rows; name the column Date if they are days, or number rows from 0"
        )
    seconds = np.rint(days * 86_400).astype(np.int64).astype("timedelta64[s]")
    ds: np.ndarray = (np.datetime64("1899-12-30", "s") + seconds).astype("datetime64[ns]")
    return Clock(ds, "days since 1899-12-30, as spreadsheets count them")


def _all_digits(cells: pd.Series) -> bool:
    if cells.dtype.kind == "M":
        return False
    first = str(cells.iloc[0]).strip().removesuffix(".0")
    return first.isdecimal() and bool(cells.astype(str).str.strip().str.fullmatch(r"\d{1,18}(\.0+)?").all())


def _in_digits(reading: Reading, column: str, cells: pd.Series, config: PriceDataConfig) -> Clock:
    """Return dates in digits, 20240131 or 202401311530, or else row numbers."""
    pandas = require("pandas", extra="prices")
    values = pandas.to_numeric(cells.astype(str) if cells.dtype.kind == "O" else cells)
    if values.dtype.kind == "f":
        odd = np.flatnonzero((values % 1 != 0).to_numpy(bool))
        if odd.size:
            reading.wrong(int(odd[0]), column, f"{cells.iloc[int(odd[0])]!r} is neither a date nor a whole number")
    whole = values.to_numpy(np.int64)
    text = pandas.Series(whole, index=cells.index).astype(str)
    length = text.str.len()
    written = {8: (17000101, 22001231), 12: (170001010000, 220012312359), 14: (17000101000000, 22001231235959)}
    low, high = written.get(int(length.iloc[0]), (0, -1))
    if not ((whole > low) & (whole < high)).all():
        if (np.abs(whole) >= 10**8).any():
            raise InputError(
                f"{reading.source}: column {column} holds neither dates nor row numbers ({whole[0]} …); write "
                "2024-01-31, 20240131, or seconds, milli-, micro- or nanoseconds since 1970"
            )
        return Clock(whole, "whole numbers: rows are numbered by them")
    parsed = pandas.to_datetime(text, format=_DIGITS[int(length.iloc[0])], errors="coerce")
    _refuse_unparsed(reading, column, cells, parsed)
    return Clock(_with_time(reading, parsed, config).to_numpy("datetime64[ns]"), _naive(reading))


def _written(reading: Reading, column: str, cells: pd.Series, config: PriceDataConfig) -> Clock:
    """Return dates as text, or as pandas' own."""
    pandas = require("pandas", extra="prices")
    if cells.dtype.kind == "O" and OFFSET.fullmatch(str(cells.iloc[0]).strip()):
        return _with_offsets(reading, column, cells, config)
    parsed = _parsed_either_way(cells, config)
    _refuse_unparsed(reading, column, cells, parsed)
    if isinstance(cells.dtype, pandas.DatetimeTZDtype):
        wall, utc = parsed.dt.tz_localize(None), parsed.dt.tz_convert("UTC").dt.tz_localize(None)
        return _local_or_utc(wall.to_numpy("datetime64[ns]"), utc.to_numpy("datetime64[ns]"), str(parsed.dt.tz))
    if parsed.dt.tz is not None:
        # An offset that is written otherwise than above: one clock for all.
        parsed = parsed.dt.tz_convert("UTC").dt.tz_localize(None)
        return Clock(parsed.to_numpy("datetime64[ns]"), "UTC")
    ds = _with_time(reading, parsed, config).to_numpy("datetime64[ns]")
    return Clock(ds, _naive(reading), asks=_either_way(cells, config))


def _with_offsets(reading: Reading, column: str, cells: pd.Series, config: PriceDataConfig) -> Clock:
    """Return text that ends in its distance from UTC."""
    pandas = require("pandas", extra="prices")
    text = cells.astype(str).str.strip()
    utc = _parsed_either_way(text, config)
    _refuse_unparsed(reading, column, cells, utc)
    walls = text.map(lambda cell: match["wall"] if (match := OFFSET.fullmatch(cell)) else "")
    wall = _parsed_either_way(walls, config)
    _refuse_unparsed(reading, column, cells, wall)
    utc = utc.dt.tz_convert("UTC").dt.tz_localize(None) if utc.dt.tz is not None else utc
    zone = _offset(int((wall.iloc[-1] - utc.iloc[-1]) / pandas.Timedelta(minutes=1)))
    return _local_or_utc(wall.to_numpy("datetime64[ns]"), utc.to_numpy("datetime64[ns]"), zone)


def _local_or_utc(wall: np.ndarray, utc: np.ndarray, zone: str) -> Clock:
    """Return local times where a market has days; UTC where it never closes and summer time would tear its steps
    apart."""
    if (wall == utc).all():
        return Clock(utc, "UTC")
    order = np.argsort(utc, kind="stable")
    rising = len(utc) < 2 or bool(
        (np.diff(wall[order]) > np.timedelta64(0))[np.diff(utc[order]) > np.timedelta64(0)].all()
    )
    steps = np.abs(np.diff(utc))
    daily = len(utc) < 2 or np.median(steps.astype(np.int64)) >= DAILY.astype("timedelta64[ns]").astype(np.int64)
    if rising and (daily or _closes(wall, steps)):
        return Clock(wall, f"local {'dates' if daily else 'time'} ({_offsets(wall, utc, zone)})")
    return Clock(utc, f"UTC; the file's own clock is {zone}", zone)


def _offsets(wall: np.ndarray, utc: np.ndarray, zone: str) -> str:
    """Return the zone's name; where the file has offsets alone, all of them."""
    if zone[:1] not in "+-":
        return zone
    found = np.unique((wall - utc).astype("timedelta64[m]").astype(np.int64))
    return ", ".join(_offset(int(minutes)) for minutes in found)


def _offset(minutes: int) -> str:
    return f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}"


def _closes(wall: np.ndarray, steps: np.ndarray) -> bool:
    """Return whether some time of the day, longer than the usual step, never has a row."""
    minutes = np.unique((wall - wall.astype("datetime64[D]")).astype("timedelta64[m]").astype(np.int64))
    longest = int(np.diff(np.append(minutes, minutes[0] + 24 * 60)).max())
    return longest > 1.5 * float(np.median(steps.astype("timedelta64[m]").astype(np.int64)))


def _with_time(reading: Reading, parsed: pd.Series, config: PriceDataConfig) -> Any:
    """Return dates with the times of day of a column of their own."""
    column = reading.columns.time
    if column is None or (parsed != parsed.dt.normalize()).any():
        return parsed
    times = times_of_day(reading.frame[column].iloc[reading.rows])
    return parsed if times is None else parsed + times


def _naive(reading: Reading) -> str:
    time = f", with {reading.columns.time}" if reading.columns.time is not None else ""
    return f"the file's own{time}; it names no time zone"


def _refuse_unparsed(reading: Reading, column: str, cells: pd.Series, parsed: pd.Series) -> None:
    bad = np.flatnonzero(parsed.isna().to_numpy())
    if bad.size:
        place = int(bad[0])
        like = f"like the first, {cells.iloc[0]!r}" if place else "in a form that is known, such as 2024-01-31"
        reading.wrong(place, column, f"{cells.iloc[place]!r} is not a date {like}")


def _parsed_either_way(cells: pd.Series, config: PriceDataConfig) -> Any:
    """Return timestamps; a day beyond the twelfth further down says which number is the day."""
    day_first = config.day_first
    if day_first is None:
        day_first = bool(_DOTTED.match(str(cells.iloc[0])))
    parsed = _parsed(cells, day_first)
    if config.day_first is None and parsed.isna().any():
        # 13/02/2019 further down says which number is the day.
        other = _parsed(cells, not day_first)
        parsed = parsed if other.isna().any() else other
    return parsed


def _either_way(cells: pd.Series, config: PriceDataConfig) -> str:
    """Return a question about dates of which every one can be read with the month first and with the day first."""
    if config.day_first is not None or cells.dtype.kind != "O" or not _SLASHED.match(str(cells.iloc[0])):
        return ""
    numbers = cells.astype(str).str.extract(_SLASHED.pattern).astype(float)
    if (numbers > 12).any(axis=None) or (numbers[0] == numbers[1]).all():
        return ""
    first = cells.iloc[0]
    return f"every date can be read two ways; {first} is, with the month first: say --data.day_first true or false"


def _parsed(cells: pd.Series, day_first: bool) -> Any:
    """Return timestamps of a column of dates, NaT where one cannot be read like the first."""
    pandas = require("pandas", extra="prices")
    first = str(cells.iloc[0])
    apart = tuple(map(len, first.split())) if first.replace(" ", "").isdecimal() else ()
    if apart in _DIGITS_APART:
        return pandas.to_datetime(cells, errors="coerce", format=_DIGITS_APART[apart])
    with warnings.catch_warnings():
        # pandas warns where the first date decides against `day_first`; the caller tries both.
        warnings.simplefilter("ignore", UserWarning)
        try:
            parsed = pandas.to_datetime(cells, errors="coerce", utc=False, dayfirst=day_first)
        except (ValueError, TypeError):
            # Offsets that change within the column (summer time): one clock for all.
            parsed = pandas.to_datetime(cells, errors="coerce", utc=True, dayfirst=day_first)
        if parsed.dtype.kind == "O":
            parsed = pandas.to_datetime(cells, errors="coerce", utc=True, dayfirst=day_first)
    return parsed
