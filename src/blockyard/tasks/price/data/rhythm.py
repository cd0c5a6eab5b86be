"""The rhythm of a series: its step, the days and sessions of its market, and the holes in it, by majority.

One odd Saturday in twenty years changes nothing: what most rows do is the rhythm, what the others do is counted.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

NAMES = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
DAY = 86_400
# A weekday belongs to the market when it has this share of the busiest weekday's rows.
OPEN = 0.2
# Days of a year, and of a market that closes on weekends and holidays.
YEAR, BUSINESS_YEAR = 365.25, 252
# Days that show a market's sessions.
LEAST_DAYS = 3
# Steps that are whole numbers of months have one of these lengths in days.
MONTHS = {1: (28, 31), 3: (89, 92), 12: (365, 366)}
# A hole of so many steps, in a market that is always open, is worth a note.
NOTABLE = 6


@dataclass(frozen=True)
class Rhythm:
    """How the rows of a dated series follow each other.

    Args:
        seconds: the step; 0 for months, whose lengths differ.
        months: the step in months, else 0.
        week: weekdays of the market, Monday 0.
        market: days and hours in words, or "".
        holes: how often more than a step lies between rows of one session, or of neighbouring ones.
        missing: rows that would fill the holes.
        longest: rows that would fill the longest one.
        before: the last row before the longest hole.
        always: whether the market never closes.
        each: rows missing between two rows, [T − 1].
    """

    seconds: int
    months: int
    week: tuple[int, ...]
    market: str
    holes: int
    missing: int
    longest: int
    before: np.datetime64 | None
    always: bool
    each: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64), compare=False, repr=False)

    @property
    def step(self) -> str:
        """In words: "1 day", "5 minutes", "3 months"."""
        if self.months:
            return f"{self.months} month{'s' * (self.months != 1)}"
        return _words(self.seconds)


def find_rhythm(ds: np.ndarray) -> Rhythm | None:
    """Return the rhythm of rising dates; None for rows without dates, or less than three.

    Args:
        ds: datetime64[ns], strictly rising, [T].
    """
    if ds.dtype.kind != "M" or len(ds) < 3:
        return None
    seconds = ds.astype("datetime64[s]").astype(np.int64)
    steps = np.diff(seconds)
    values, counts = np.unique(steps, return_counts=True)
    step = int(values[counts.argmax()])
    if step <= 0:
        return None
    days = seconds // DAY
    found = Rhythm(step, 0, tuple(_week(days).tolist()), "", 0, 0, 0, None, False)
    if (months := _months(steps)) is not None:
        number = ds.astype("datetime64[M]").astype(np.int64)
        return _with_holes(replace(found, seconds=0, months=months), np.diff(number) // months - 1, ds)
    if step > DAY:
        return _with_holes(found, steps // step - 1, ds)
    return _intraday(found, ds, seconds) if step < DAY else _daily(found, ds, days)


def steps_per_year(ds: np.ndarray) -> int:
    """Return how many rows a series has in a year: 252 for five days a week, 365 for seven, the bars of a year for
    bars.

    Args:
        ds: dates, or row numbers, which are taken for business days; [T].
    """
    rhythm = find_rhythm(ds)
    if rhythm is None:
        return BUSINESS_YEAR
    if rhythm.months:
        return max(12 // rhythm.months, 1)
    open_days = BUSINESS_YEAR * len(rhythm.week) / 5 if len(rhythm.week) < 7 else YEAR
    if rhythm.seconds == DAY:
        return round(open_days)
    if rhythm.seconds > DAY or rhythm.always:
        return max(round(YEAR * DAY / rhythm.seconds), 1)
    seconds = ds.astype("datetime64[s]").astype(np.int64)
    if weeks := int((seconds[-1] - seconds[0]) // (7 * DAY)):
        # Whole weeks, so that a weekend counts as it should.
        return max(
            round(int((seconds > seconds[-1] - weeks * 7 * DAY).sum()) / weeks * open_days / len(rhythm.week)), 1
        )
    return round(_most(np.unique(seconds // DAY, return_counts=True)[1]) * open_days)


def _daily(found: Rhythm, ds: np.ndarray, days: np.ndarray) -> Rhythm:
    """Return bars of a day: what is missing are days of the market."""
    mask = [number in found.week for number in range(7)]
    between = np.busday_count(_dates(days[:-1] + 1), _dates(days[1:]), weekmask=mask)
    other = int((~np.isin((days + 3) % 7, found.week)).sum())
    more = f" ({other} row{'s' * (other != 1)} on other days)" if other else ""
    return _with_holes(replace(found, market=_week_words(found.week) + more, always=len(found.week) == 7), between, ds)


def _intraday(found: Rhythm, ds: np.ndarray, seconds: np.ndarray) -> Rhythm:
    """Return bars shorter than a day: with sessions, or around the clock."""
    of_day, days = seconds % DAY, seconds // DAY
    times = np.unique(of_day)
    longest = int(np.diff(np.append(times, times[0] + DAY)).max())
    missing = np.diff(seconds) // found.seconds - 1
    inside = days[1:] == days[:-1]
    if longest <= 1.5 * found.seconds:
        open_days = len(found.week) == 7
        market = f"around the clock, {_week_words(found.week)}"
        # Over a weekend nothing is missing.
        return _with_holes(
            replace(found, market=market, always=open_days), np.where(inside | open_days, missing, 0), ds
        )
    per_day = np.unique(days, return_counts=True)[1]
    firsts, lasts = of_day[1:][~inside], of_day[:-1][~inside]
    if len(per_day) >= LEAST_DAYS:
        hours = f"{_clock(_most(firsts))} … {_clock(_most(lasts))}"
        found = replace(found, market=f"{_week_words(found.week)}, {hours}, {_most(per_day)} rows a day")
    return _with_holes(found, np.where(inside, missing, 0), ds)


def _with_holes(found: Rhythm, missing: np.ndarray, ds: np.ndarray) -> Rhythm:
    missing = np.maximum(missing, 0)
    place = int(missing.argmax())
    return replace(
        found,
        holes=int((missing > 0).sum()),
        missing=int(missing.sum()),
        longest=int(missing[place]),
        before=ds[place] if missing[place] else None,
        each=missing,
    )


def _dates(days: np.ndarray) -> np.ndarray:
    found: np.ndarray = days.astype("datetime64[D]")
    return found


def _week(days: np.ndarray) -> np.ndarray:
    """Return weekdays of the market, Monday 0; of less than two weeks, the weekdays, or every day."""
    # 1970-01-01 was a Thursday.
    counts = np.bincount((np.unique(days) + 3) % 7, minlength=7)
    if days[-1] - days[0] < 14:
        return np.arange(7 if counts[5:].any() else 5)
    return np.flatnonzero(counts > OPEN * counts.max())


def _week_words(days: tuple[int, ...]) -> str:
    if len(days) == 7:
        return "every day"
    week = np.array(days)
    runs = np.diff(week)
    if (runs == 1).all() and len(week) > 2:
        return f"{NAMES[week[0]]}–{NAMES[week[-1]]}"
    # Sunday to Thursday: the week begins behind the longest pause.
    start = (int(runs.argmax()) + 1) % len(week) if len(week) > 1 and runs.max() > 1 else 0
    turned = np.roll(week, -start)
    if len(week) > 2 and ((np.diff(turned) % 7) == 1).all():
        return f"{NAMES[turned[0]]}–{NAMES[turned[-1]]}"
    return ", ".join(NAMES[day] for day in week)


def _months(steps: np.ndarray) -> int | None:
    days = steps / DAY
    for months, (least, most) in MONTHS.items():
        if np.mean((days >= least) & (days <= most)) > 0.5 and len(np.unique(days)) > 1:
            return months
    return None


def _most(values: np.ndarray) -> int:
    found, counts = np.unique(values, return_counts=True)
    return int(found[counts.argmax()])


def _clock(seconds: int) -> str:
    hours, minutes, rest = seconds // 3600, seconds // 60 % 60, seconds % 60
    return f"{hours:02}:{minutes:02}" + (f":{rest:02}" if rest else "")


def _words(seconds: int) -> str:
    for size, word in ((7 * DAY, "week"), (DAY, "day"), (3600, "hour"), (60, "minute"), (1, "second")):
        if seconds % size == 0:
            number = seconds // size
            return f"{number} {word}{'s' * (number != 1)}"
    return f"{seconds} seconds"
