"""Dates of the steps that follow a series: as most of its rows follow each other.

    days        the market's weekdays, Monday to Friday or Sunday to Thursday or all; with a calendar its sessions
    months      month ends stay month ends, last business days last business days, the 15th the 15th
    bars        the slots of the week that have rows in most weeks: sessions, nights and weekends as they were

Holidays are known to a calendar alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from blockyard.errors import InputError, require
from blockyard.tasks.price.data.rhythm import DAY, Rhythm, find_rhythm

WEEK = 7 * DAY
# Weeks at the end of a series that show its slots, and the share of them in which a slot must have a row.
LATELY, USUAL = 13, 0.5
# Days to look ahead for each bar before giving up on slots.
AHEAD = 14


def future_dates(ds: np.ndarray, horizons: Sequence[int], calendar: str | None = None) -> np.ndarray:
    """Return dates `h` steps after the last.

    Args:
        ds: rising: datetime64[ns], or int64 for rows without dates; [T].
        horizons: steps ahead, from 1 on.
        calendar: an exchange's code such as XNYS, for its holidays (extra: calendars).

    Returns: one date for each horizon, of the type of `ds`.

    Raises:
        InputError: when the calendar is unknown or ends too early.
    """
    ahead = np.asarray(horizons, np.int64)
    if ds.dtype.kind != "M":
        return ds[-1] + ahead * int(np.median(np.diff(ds)))
    rhythm = find_rhythm(ds)
    if rhythm is None:
        step = int(np.median(np.diff(ds).astype(np.int64))) if len(ds) > 1 else DAY * 10**9
        return ds[-1] + (ahead * step).astype("timedelta64[ns]")
    if rhythm.months:
        return _months(ds, ahead * rhythm.months)
    if rhythm.seconds < DAY:
        return _bars(ds, ahead, rhythm, calendar)
    if rhythm.seconds == DAY:
        return _days(ds, ahead, rhythm, calendar)
    last = ds[-1]
    if rhythm.seconds % WEEK == 0:
        # A week that ended before a holiday does not move those after it.
        weekday = _weekday(ds)
        last = last + np.timedelta64(int((np.bincount(weekday).argmax() - weekday[-1] + 3) % 7) - 3, "D")
    found: np.ndarray = last + (ahead * rhythm.seconds).astype("timedelta64[s]")
    return found.astype("datetime64[ns]")


def _weekday(ds: np.ndarray) -> np.ndarray:
    """Return Monday 0. 1970-01-01 was a Thursday."""
    days: np.ndarray = (ds.astype("datetime64[D]").astype(np.int64) + 3) % 7
    return days


def _days(ds: np.ndarray, ahead: np.ndarray, rhythm: Rhythm, calendar: str | None) -> np.ndarray:
    """Return days of the market, at the time of day that most rows have."""
    days = ds.astype("datetime64[D]")
    times, counts = np.unique((ds - days).astype(np.int64), return_counts=True)
    if calendar is not None:
        found = _sessions(calendar, days[-1], int(ahead.max()))[ahead - 1]
    else:
        mask = [number in rhythm.week for number in range(7)]
        first = np.busday_offset(days[-1], 0, roll="backward", weekmask=mask)
        found = np.busday_offset(first, ahead, weekmask=mask)
    moved: np.ndarray = found.astype("datetime64[ns]") + times[counts.argmax()].astype("timedelta64[ns]")
    return moved


def _sessions(code: str, after: np.datetime64, count: int) -> np.ndarray:
    """Return the next sessions of an exchange."""
    calendars = require("exchange_calendars", extra="calendars")
    end = after + np.timedelta64(2 * count + 30, "D")
    try:
        with warnings.catch_warnings():
            # The package and pandas warn each other's authors of coming changes.
            warnings.simplefilter("ignore")
            calendar = calendars.get_calendar(code, start=str(after), end=str(end))
    except Exception as error:
        # Unknown codes, and calendars that are laid down for some years only.
        raise InputError(f"data.calendar={code} has no sessions until {end}: {error}") from error
    sessions: np.ndarray = calendar.sessions.to_numpy("datetime64[D]")
    return sessions[sessions > after]


def _months(ds: np.ndarray, ahead: np.ndarray) -> np.ndarray:
    """Return months, on the day that most rows have: the last, a number, the last or the first business day."""
    days = ds.astype("datetime64[D]")
    numbers = (days - days.astype("datetime64[M]").astype("datetime64[D]")).astype(np.int64)
    usual = int(np.bincount(numbers).argmax())

    def last(months: np.ndarray) -> np.ndarray:
        return (months + 1).astype("datetime64[D]") - 1

    def same(months: np.ndarray) -> np.ndarray:
        return np.minimum(months.astype("datetime64[D]") + usual, last(months))

    def last_business(months: np.ndarray) -> np.ndarray:
        return np.busday_offset(last(months), 0, roll="backward")

    def first_business(months: np.ndarray) -> np.ndarray:
        return np.busday_offset(months.astype("datetime64[D]"), 0, roll="forward")

    # Of equals the first.
    rules = (last, same, last_business, first_business)
    held = [float((rule(days.astype("datetime64[M]")) == days).mean()) for rule in rules]
    rule = rules[int(np.argmax(held))]
    if max(held) <= USUAL:
        usual = int(numbers[-1])
        rule = same
    found: np.ndarray = rule(days[-1].astype("datetime64[M]") + ahead)
    return found.astype("datetime64[ns]")


def _bars(ds: np.ndarray, ahead: np.ndarray, rhythm: Rhythm, calendar: str | None) -> np.ndarray:
    """Return bars within days: the slots of the week that most weeks have."""
    seconds = ds.astype("datetime64[s]").astype(np.int64)
    last, count = int(seconds[-1]), int(ahead.max())
    slots = _slots(seconds, rhythm)
    found: list[int] = []
    day = last // DAY
    open_days = None
    if calendar is not None:
        before = np.datetime64(int(day), "D") - np.timedelta64(1, "D")
        open_days = set(_sessions(calendar, before, count + AHEAD).astype(np.int64).tolist())
    for number in range(AHEAD * (count + 1)):
        if len(found) >= count or not any(len(one) for one in slots):
            break
        if open_days is None or day + number in open_days:
            times = (day + number) * DAY + slots[(day + number + 3) % 7]
            found += times[times > last].tolist()
    if len(found) < count:
        steps: np.ndarray = ds[-1] + (ahead * rhythm.seconds).astype("timedelta64[s]")
        return steps.astype("datetime64[ns]")
    return np.array(found, np.int64)[ahead - 1].astype("datetime64[s]").astype("datetime64[ns]")


def _slots(seconds: np.ndarray, rhythm: Rhythm) -> list[np.ndarray]:
    """Return usual times of day of each weekday, in seconds, Monday first."""
    # Weeks from Monday on.
    shifted = seconds + 3 * DAY
    lately = shifted[shifted > shifted[-1] - LATELY * WEEK]
    weeks = np.unique(lately // WEEK)
    if len(weeks) > 3:
        # The first and the last are cut short.
        whole = lately[(lately // WEEK > weeks[0]) & (lately // WEEK < weeks[-1])]
        slots, counts = np.unique(whole % WEEK, return_counts=True)
        usual = slots[counts > USUAL * (len(weeks) - 2)]
        return [usual[usual // DAY == day] % DAY for day in range(7)]
    times, counts = np.unique(lately % DAY, return_counts=True)
    usual = times[counts > USUAL * (len(np.unique(lately // DAY)))]
    return [usual if day in rhythm.week else usual[:0] for day in range(7)]
