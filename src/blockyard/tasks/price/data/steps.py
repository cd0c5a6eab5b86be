"""What each return of a series is of: a step of its market, a night, or a hole that no step explains.

    within   one step to the next row of the same session; short pauses (lunch) and a few missing rows count as one
    night    a market that closes: from the last bar before three hours and more without any, to the bar that opens
    hole     rows are missing where the market has them: six and more steps of one that never closes, more than nearly
             all pauses of a session, more than fifteen days

Days, weeks and months have no nights. A market's hours are told by its rows by majority, like its step: they are its
calendar, and the same whichever way prices go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from blockyard.tasks.price.data.rhythm import DAY, NOTABLE, Rhythm, find_rhythm

# Seconds without a bar that make a night, and days that make a hole of any market that closes.
NIGHT, HOLE_DAYS = 3 * 3600, 15
# Nights that show a market's hours, and the share of them in which a slot must have a row.
LEAST_NIGHTS, USUAL = 3, 0.5
# Pauses within a session that are longer than this share of all steps are holes.
RARE = 0.99


@dataclass(frozen=True, eq=False)
class Sessions:
    """The hours of a market that closes.

    Args:
        period: seconds after which they begin again, a day or a week.
        opens: when, in seconds of the period.
        slots: when bars are usual, in seconds after opening, rising.
    """

    period: int
    opens: int
    slots: np.ndarray

    def since_opening(self, ds: np.ndarray) -> np.ndarray:
        """Return seconds since the market opened, [T]."""
        found: np.ndarray = (_seconds(ds) - self.opens) % self.period
        return found

    def nights(self, ds: np.ndarray, horizons: Sequence[int]) -> np.ndarray:
        """Return how many nights lie before the bar h steps later, by the usual hours: [T, H]."""
        left = len(self.slots) - np.searchsorted(self.slots, self.since_opening(ds), "right")
        beyond = np.asarray(horizons, np.int64) - left[:, None]
        return np.where(beyond > 0, 1 + (beyond - 1) // len(self.slots), 0)


@dataclass(frozen=True, eq=False)
class Steps:
    """Which rows follow a night or a hole.

    Args:
        ds: dates or row numbers, [T].
        night: bool [T].
        hole: likewise; no row follows both.
        intraday: whether bars are shorter than a day.
    """

    ds: np.ndarray
    night: np.ndarray
    hole: np.ndarray
    intraday: bool = False

    @cached_property
    def sessions(self) -> Sessions | None:
        """The market's hours; None for one that has no nights, or too few to tell."""
        return _sessions(self.ds, self.night) if self.night.sum() >= LEAST_NIGHTS else None

    @property
    def within(self) -> np.ndarray:
        """Rows whose return is of one step, [T]; the first row has no return."""
        found = ~(self.night | self.hole)
        found[:1] = False
        return found

    @property
    def plain(self) -> bool:
        """Whether every return is of one step."""
        return not (self.night.any() or self.hole.any())

    def crosses(self, reach: int) -> np.ndarray:
        """Return whether a hole lies within the next `reach` steps, [T]."""
        holes = np.cumsum(self.hole)
        ends = np.minimum(np.arange(len(holes)) + reach, len(holes) - 1)
        found: np.ndarray = holes[ends] > holes
        return found


def alike(ds: np.ndarray) -> Steps:
    """Return steps that are not told apart: every return is of one."""
    nothing = np.zeros(len(ds), bool)
    return Steps(ds, nothing, nothing)


def find_steps(ds: np.ndarray) -> Steps:
    """Tell returns apart by the dates of their rows.

    Args:
        ds: rising: datetime64[ns], or int64 for rows without dates; [T].
    """
    rhythm = find_rhythm(ds)
    if rhythm is None:
        return alike(ds)
    seconds = np.diff(_seconds(ds))
    intraday = 0 < rhythm.seconds < DAY
    closes = intraday and not rhythm.always
    night = closes & (seconds >= NIGHT) & (seconds > 1.5 * rhythm.seconds)
    hole = _holes(rhythm, seconds, night)
    return Steps(ds, _before_first(night & ~hole), _before_first(hole), intraday)


def _holes(rhythm: Rhythm, seconds: np.ndarray, night: np.ndarray) -> np.ndarray:
    missing = rhythm.each
    if rhythm.always or rhythm.seconds > DAY or rhythm.months:
        return missing >= NOTABLE
    long: np.ndarray = seconds > HOLE_DAYS * DAY
    if rhythm.seconds == DAY:
        # Holidays of a week and a half are usual in some markets.
        return long
    # A share that trades now and then has pauses all day: none of them is a hole.
    least = max(NOTABLE, int(np.quantile(missing, RARE, method="higher")) + 1)
    return long | (~night & (missing >= least))


def _sessions(ds: np.ndarray, night: np.ndarray) -> Sessions | None:
    seconds = _seconds(ds)
    days = len(np.unique(seconds // DAY))
    period = DAY if night.sum() >= days / 2 else 7 * DAY
    times, counts = np.unique(seconds[night] % period, return_counts=True)
    opens = int(times[counts.argmax()])
    slots, counts = np.unique((seconds - opens) % period, return_counts=True)
    # The first and the last session may be cut short.
    usual = slots[counts > USUAL * night.sum()]
    return Sessions(period, opens, usual) if len(usual) > 1 else None


def _seconds(ds: np.ndarray) -> np.ndarray:
    found: np.ndarray = ds.astype("datetime64[s]").astype(np.int64)
    return found


def _before_first(flags: np.ndarray) -> np.ndarray:
    return np.append(False, flags)
