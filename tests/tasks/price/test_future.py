"""Dates of forecasts: they follow the series as most of its rows follow each other."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from blockyard.errors import InputError
from blockyard.tasks.price.future import future_dates

SUNDAYS = "Sun Mon Tue Wed Thu"


def sessions(first: str, last: str, *, start: int = 570, end: int = 955, step: str = "5min") -> pd.DatetimeIndex:
    """Bars of weekdays between two minutes of the day."""
    bars = pd.date_range(first, last, freq=step)
    minute = bars.hour * 60 + bars.minute
    return bars[(minute >= start) & (minute <= end) & (bars.day_of_week < 5)]


def fx(first: str, last: str) -> pd.DatetimeIndex:
    """Hours from Sunday 22:00 to Friday 21:00."""
    hours = pd.date_range(first, last, freq="h")
    of_week = (hours.day_of_week * 24 + hours.hour - (6 * 24 + 22)) % 168
    return hours[of_week < 120]


# Series that go on as their later rows do: all but the last 12 are given, those are what must come out.
RULES = {
    "weekdays": pd.bdate_range("2022-01-03", periods=300),
    "weekdays at four": pd.bdate_range("2022-01-03", periods=300) + pd.Timedelta(hours=16),
    "Sunday to Thursday": pd.bdate_range("2022-01-02", periods=300, freq="C", weekmask=SUNDAYS),
    "every day": pd.date_range("2022-01-01", periods=300),
    "Fridays": pd.date_range("2022-01-07", periods=80, freq="W-FRI"),
    "month ends": pd.date_range("2015-01-31", periods=100, freq="ME"),
    "first of the month": pd.date_range("2015-01-01", periods=100, freq="MS"),
    "the fifteenth": pd.date_range("2015-01-01", periods=100, freq="MS") + pd.Timedelta(days=14),
    "last business days": pd.date_range("2015-01-31", periods=100, freq="BME"),
    "first business days": pd.date_range("2015-01-01", periods=100, freq="BMS"),
    "quarter ends": pd.date_range("2010-03-31", periods=40, freq="QE"),
    "years": pd.date_range("1980-12-31", periods=40, freq="YE"),
    "hours": pd.date_range("2024-01-01", periods=500, freq="h"),
    "four hours": pd.date_range("2024-01-01", periods=500, freq="4h"),
    "sessions": sessions("2024-01-01", "2024-03-02"),
    "sessions over a weekend": sessions("2024-01-01", "2024-03-04 09:35"),
    "sessions of hours": sessions("2024-01-01", "2024-03-04 12:00", step="60min", start=600),
    "a few sessions": sessions("2024-01-01", "2024-01-08 09:50"),
    "nights of currencies": fx("2024-01-07", "2024-03-04 04:00"),
}


@pytest.mark.parametrize("case", RULES)
def test_the_next_dates_are_those_that_come_next(case: str) -> None:
    dates = RULES[case].to_numpy("datetime64[ns]")
    horizons = (1, 2, 3, 5, 12)
    found = future_dates(dates[:-12], horizons)
    assert found.dtype == np.dtype("datetime64[ns]")
    assert found.tolist() == dates[-12:][np.array(horizons) - 1].tolist()


def test_a_row_on_a_closed_day_and_a_hole_decide_nothing() -> None:
    days = pd.bdate_range("2019-01-01", periods=900)
    odd = days.delete([50, 51, 300]).union(pd.DatetimeIndex(["2021-03-06"])).to_numpy("datetime64[ns]")
    assert (future_dates(odd, (1, 2, 30)) == future_dates(days.to_numpy("datetime64[ns]"), (1, 2, 30))).all()


def test_a_week_that_ends_early_does_not_move_the_others() -> None:
    fridays = pd.date_range("2022-01-07", periods=60, freq="W-FRI").to_numpy("datetime64[ns]")
    fridays[-1] -= np.timedelta64(1, "D")
    assert str(future_dates(fridays, (1,))[0])[:10] == "2023-03-03"


def test_a_calendar_knows_the_holidays() -> None:
    pytest.importorskip("exchange_calendars", reason="exchange_calendars is not installed")
    days = pd.bdate_range("2023-01-02", "2024-05-24").to_numpy("datetime64[ns]")
    assert str(future_dates(days, (1,))[0])[:10] == "2024-05-27"
    # Memorial Day.
    assert [str(day)[:10] for day in future_dates(days, (1, 2), "XNYS")] == ["2024-05-28", "2024-05-29"]
    bars = sessions("2024-03-01", "2024-05-24 23:00").to_numpy("datetime64[ns]")
    assert str(future_dates(bars, (1,), "XNYS")[0])[:16] == "2024-05-28T09:30"
    with pytest.raises(InputError, match=r"data\.calendar=XNYZ has no sessions until"):
        future_dates(days, (1,), "XNYZ")


def test_rows_without_dates_and_very_short_series_go_on_by_their_step() -> None:
    assert future_dates(np.arange(5) * 2, (1, 3)).tolist() == [10, 14]
    two = np.array(["2024-01-01", "2024-01-04"], "datetime64[ns]")
    assert str(future_dates(two, (2,))[0])[:10] == "2024-01-10"
