"""The rhythm of a series: what most rows do, and what is missing from it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from blockyard.tasks.price.data.rhythm import find_rhythm, steps_per_year
from blockyard.tasks.price.data.table import show_rhythm

RHYTHMS = {
    "weekdays": (pd.bdate_range("2020-01-01", periods=300), "1 day, Mon–Fri; no holes"),
    "every day": (pd.date_range("2020-01-01", periods=300), "1 day, every day; no holes"),
    "Sunday to Thursday": (
        pd.bdate_range("2020-01-01", periods=300, freq="C", weekmask="Sun Mon Tue Wed Thu"), "1 day, Sun–Thu; no holes",
    ),
    "weeks": (pd.date_range("2020-01-03", periods=100, freq="W-FRI"), "1 week; no holes"),
    "month ends": (pd.date_range("2020-01-31", periods=60, freq="ME"), "1 month; no holes"),
    "last business days": (pd.date_range("2020-01-31", periods=60, freq="BME"), "1 month; no holes"),
    "quarters": (pd.date_range("2020-01-31", periods=30, freq="QE"), "3 months; no holes"),
    "years": (pd.date_range("1990-01-31", periods=30, freq="YE"), "12 months; no holes"),
    "hours without end": (
        pd.date_range("2020-01-01", periods=400, freq="h"), "1 hour, around the clock, every day; no holes",
    ),
    "minutes": (
        pd.date_range("2020-01-01", periods=3 * 1440, freq="min"), "1 minute, around the clock, Mon–Fri; no holes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", RHYTHMS)
def test_the_rhythm_is_what_most_rows_do(case: str) -> None:
    dates, words = RHYTHMS[case]
    rhythm = find_rhythm(dates.to_numpy("datetime64[ns]"))
    assert rhythm is not None and show_rhythm(rhythm) == words


def test_one_saturday_in_years_changes_nothing() -> None:
    days = pd.bdate_range("2020-01-01", periods=900).union(pd.DatetimeIndex(["2021-03-06"]))
    rhythm = find_rhythm(days.to_numpy("datetime64[ns]"))
    assert rhythm is not None and show_rhythm(rhythm) == "1 day, Mon–Fri (1 row on other days); no holes"


def test_holes_are_counted_in_rows_of_the_market() -> None:
    days = pd.bdate_range("2020-01-01", periods=300)
    kept = days.delete([10, 50, 51, 52])
    rhythm = find_rhythm(kept.to_numpy("datetime64[ns]"))
    assert rhythm is not None and (rhythm.holes, rhythm.missing, rhythm.longest) == (2, 4, 3)
    assert rhythm.before == np.datetime64(days[49])
    assert show_rhythm(rhythm).endswith("2 holes, 4 rows missing, the longest 3 after " + str(days[49].date()))


def test_sessions_of_a_day_are_told_and_their_nights_are_no_holes() -> None:
    minutes = pd.date_range("2024-01-01", "2024-02-01", freq="5min")
    inside = (minutes.hour * 60 + minutes.minute >= 570) & (minutes.hour < 16) & (minutes.day_of_week < 5)
    bars = minutes[inside]
    rhythm = find_rhythm(bars.delete([100, 101]).to_numpy("datetime64[ns]"))
    assert rhythm is not None and not rhythm.always
    assert rhythm.market == "Mon–Fri, 09:30 … 15:55, 78 rows a day" and (rhythm.holes, rhythm.missing) == (1, 2)


def test_rows_without_dates_and_too_few_have_no_rhythm() -> None:
    assert find_rhythm(np.arange(100)) is None
    assert find_rhythm(np.array(["2024-01-01", "2024-01-02"], "datetime64[ns]")) is None


def test_a_year_has_as_many_steps_as_the_series_has() -> None:
    minutes = pd.date_range("2024-01-01", "2024-03-01", freq="min")
    inside = (minutes.hour * 60 + minutes.minute >= 570) & (minutes.hour < 16) & (minutes.day_of_week < 5)
    years = {
        252: pd.bdate_range("2020-01-01", periods=300),
        365: pd.date_range("2020-01-01", periods=300),
        52: pd.date_range("2020-01-03", periods=100, freq="W-FRI"),
        12: pd.date_range("2020-01-31", periods=60, freq="ME"),
        4: pd.date_range("2020-01-31", periods=30, freq="QE"),
        8766: pd.date_range("2020-01-01", periods=2000, freq="h"),
        252 * 390: minutes[inside],
    }
    found = {number: steps_per_year(dates.to_numpy("datetime64[ns]")) for number, dates in years.items()}
    assert found == {number: number for number in years}
    assert steps_per_year(minutes[inside][: 3 * 390].to_numpy("datetime64[ns]")) == 252 * 390
    assert steps_per_year(np.arange(100)) == 252
