"""Dates and times: a bar belongs to its local date, steps stay true, and nothing is read as 1970."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from blockyard.errors import InputError
from blockyard.tasks.price.data.clock import in_zone
from blockyard.tasks.price.data.config import PriceDataConfig
from blockyard.tasks.price.data.reader import read_prices
from blockyard.tasks.price.data.table import Asset, Prices
from blockyard.tasks.price.data.units import epoch_unit, times_of_day
from tests.fixtures.prices import ohlcv


def closes(number: int) -> list[float]:
    return [100 + (n * 7) % 5 for n in range(number)]


def read(tmp_path: Path, dates: Any, header: str = "Date,Close", **options: Any) -> Prices:
    path = tmp_path / "p.csv"
    written = [str(one) for one in dates]
    path.write_text(header + "\n" + "".join(f"{d},{c}\n" for d, c in zip(written, closes(len(written)))))
    return read_prices(path, PriceDataConfig(**options))


def days(asset: Asset) -> list[str]:
    return [str(day) for day in asset.ds.astype("datetime64[D]")]


BUSINESS = pd.bdate_range("2024-01-08", periods=120)
ZONES = ["Asia/Tokyo", "Europe/Berlin", "America/New_York", "Australia/Sydney"]


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("time", ["00:00", "15:30"])
def test_a_daily_bar_belongs_to_its_local_date(zone: str, time: str, tmp_path: Path) -> None:
    local = (BUSINESS + pd.Timedelta(f"{time}:00")).tz_localize(zone)
    for dates in (local, local.map(lambda one: one.isoformat()), local.strftime("%Y-%m-%dT%H:%M:%S.000%z")):
        asset = read(tmp_path, dates).assets[0]
        assert days(asset) == [str(day.date()) for day in BUSINESS]
        assert asset.zone is None


@pytest.mark.parametrize("zone", ZONES)
def test_frames_with_time_zones_are_read_like_files(zone: str) -> None:
    frame = ohlcv(60)
    frame["Date"] = frame["Date"].dt.tz_localize(zone)
    plain = read_prices(ohlcv(60)).fingerprint()["sha256"]
    objects = pd.Series([day.to_pydatetime() for day in frame["Date"]], dtype=object)
    for one in (frame, frame.set_index("Date"), frame.assign(Date=objects)):
        assert read_prices(one).fingerprint()["sha256"] == plain
    unnamed = frame.set_index("Date").rename_axis(None)
    assert read_prices(unnamed).understood[-1] == f"clock: local dates ({zone})"


def test_a_day_in_utc_stays_what_it_was(tmp_path: Path) -> None:
    for end in ("Z", "+00:00", " UTC"):
        asset = read(tmp_path, [f"{day.date()}T00:00:00{end}" for day in BUSINESS]).assets[0]
        assert days(asset) == [str(day.date()) for day in BUSINESS]


def sessions(zone: str) -> pd.DatetimeIndex:
    hours = pd.date_range("2024-03-04 09:30", "2024-03-22 15:30", freq="30min", tz=zone)
    inside = (hours.hour * 60 + hours.minute >= 570) & (hours.hour * 60 + hours.minute <= 930)
    return hours[inside & (hours.day_of_week < 5)]


def test_sessions_keep_local_time_over_the_change_to_summer(tmp_path: Path) -> None:
    prices = read(tmp_path, sessions("America/New_York"))
    ds = prices.assets[0].ds
    start = ds[np.concatenate([[True], np.diff(ds) > np.timedelta64(1, "h")])]
    assert set((start - start.astype("datetime64[D]")).astype("timedelta64[m]").astype(int)) == {570}
    assert prices.understood[-1] == "clock: local time (-05:00, -04:00)"
    assert "step: 30 minutes, Mon–Fri, 09:30 … 15:30, 13 rows a day; no holes" in prices.report()


@pytest.mark.parametrize("start", ["2023-10-28", "2024-03-30"])
def test_a_market_that_never_closes_keeps_true_steps_and_shows_the_files_clock(start: str, tmp_path: Path) -> None:
    hours = pd.date_range(f"{start} 00:00", periods=72, freq="h", tz="Europe/Berlin")
    for dates, frame in ((hours, None), (None, pd.DataFrame({"close": closes(72)}, index=hours))):
        prices = read(tmp_path, dates) if frame is None else read_prices(frame)
        asset = prices.assets[0]
        assert set(np.diff(asset.ds).astype("timedelta64[m]").astype(int)) == {60}
        assert "UTC; the file's own clock is" in prices.understood[-1]
        last = hours[-1].tz_localize(None)
        assert in_zone(asset.ds[-1:], asset.zone)[0] == np.datetime64(last)


def test_the_clock_shown_is_moved_by_the_zone_alone() -> None:
    noon = np.array(["2024-01-01T12:00", "2024-07-01T12:00"], "datetime64[ns]")
    assert in_zone(noon, None) is noon
    assert in_zone(noon, "-03:30").astype("datetime64[m]").astype(str).tolist() == [
        "2024-01-01T08:30",
        "2024-07-01T08:30",
    ]
    assert in_zone(noon, "Asia/Tokyo").astype("datetime64[h]").astype(str).tolist() == [
        "2024-01-01T21",
        "2024-07-01T21",
    ]
    assert in_zone(noon, "Europe/Berlin").astype("datetime64[h]").astype(str).tolist() == [
        "2024-01-01T13",
        "2024-07-01T14",
    ]
    rows = np.arange(3)
    assert in_zone(rows, "+01:00") is rows


SECONDS = 1_704_067_200
SCALES = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}


@pytest.mark.parametrize("unit", SCALES)
@pytest.mark.parametrize("form", ["whole", "float", "quoted"])
def test_times_since_1970_are_read_in_the_unit_that_they_show(unit: str, form: str, tmp_path: Path) -> None:
    numbers = [(SECONDS + 86_400 * n) * SCALES[unit] for n in range(200)]
    shown = {"whole": str, "float": lambda n: f"{n}.0", "quoted": lambda n: f'"{n}"'}[form]
    prices = read(tmp_path, map(shown, numbers), "timestamp,close")
    assert prices.assets[0].span() == "2024-01-01 … 2024-07-18"
    assert prices.understood[-1] == f"clock: {unit} since 1970, UTC"
    frame = pd.DataFrame({"time": np.array(numbers, float if form == "float" else np.int64), "close": closes(200)})
    assert (read_prices(frame).assets[0].ds == prices.assets[0].ds).all()


def test_times_before_1970_and_parts_of_seconds_are_read(tmp_path: Path) -> None:
    old = read(tmp_path, [86_400 * n for n in range(-8_000, 8_000)], "time,close").assets[0]
    assert old.span() == "1948-02-06 … 1991-11-26"
    parts = read(tmp_path, [f"{SECONDS + n}.25" for n in range(60)], "time,close").assets[0]
    assert str(parts.ds[1]) == "2024-01-01T00:00:01.250000000"


@pytest.mark.parametrize("numbers", [
    [SECONDS + n if n < 30 else (SECONDS + n) * 1000 for n in range(60)],
    [SECONDS * 10**12 + n for n in range(60)],
    [20240101 + n if n < 20 else SECONDS for n in range(60)],
], ids=["two units", "no unit", "dates and seconds"])  # fmt: skip
def test_numbers_that_are_neither_dates_nor_rows_are_refused(numbers: list[int], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"column time|row \d+ .*column time"):
        read(tmp_path, numbers, "time,close", max_gap=1e9)


def test_small_whole_numbers_are_rows_and_dates_in_digits_are_dates(tmp_path: Path) -> None:
    rows = read(tmp_path, range(5, 65), "time,close")
    assert not rows.assets[0].dated and rows.assets[0].ds.tolist() == list(range(5, 65))
    assert rows.understood[-1] == "clock: whole numbers: rows are numbered by them"
    hours = pd.date_range("2024-01-31 22:00", periods=60, freq="h")
    for form in ("%Y%m%d%H%M", "%Y%m%d%H%M%S", "%Y%m%d %H%M", "%Y%m%d %H%M%S"):
        asset = read(tmp_path, hours.strftime(form), "time,close").assets[0]
        assert (asset.ds == hours.to_numpy("datetime64[ns]")).all(), form


@pytest.mark.parametrize("form", ["%H:%M", "%H:%M:%S", "%I:%M %p", "%H%M%S", "%H%M"])
@pytest.mark.parametrize("date", ["%Y-%m-%d", "%Y.%m.%d", "%d.%m.%Y", "%Y%m%d", "%m/%d/%Y"])
def test_date_and_time_in_two_columns_are_one(form: str, date: str, tmp_path: Path) -> None:
    hours = pd.date_range("2024-01-11", periods=60, freq="h")
    written = [f"{one.strftime(date)},{one.strftime(form)}" for one in hours]
    prices = read(tmp_path, written, "Date,Time,Close")
    assert (prices.assets[0].ds == hours.to_numpy("datetime64[ns]")).all()
    assert prices.assets[0].extra == {} and "with Time" in prices.understood[-1]


@pytest.mark.parametrize("number", ["{n}.5", "{n}", "1{n:03}", "{n:06}", "5"])
def test_a_column_called_time_that_holds_other_numbers_is_a_feature(number: str, tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    rows = [f"{d.date()},{number.format(n=n % 50)},{100 + n % 7}\n" for n, d in enumerate(BUSINESS)]
    path.write_text("Date,Time,Close\n" + "".join(rows))
    asset = read_prices(path).assets[0]
    assert list(asset.extra) == ["Time"] and asset.ds[1] == np.datetime64("2024-01-09")


def test_a_column_that_repeats_the_dates_is_no_feature_unless_named(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("Unix,Date,Close\n" + "".join(
        f"{SECONDS + 86_400 * n},{d.date()},{100 + n % 7}\n" for n, d in enumerate(BUSINESS)
    ))  # fmt: skip
    prices = read_prices(path)
    assert prices.assets[0].extra == {} and "Unix repeats the date and is left out" in prices.report()
    assert list(read_prices(path, PriceDataConfig(extra="Unix")).assets[0].extra) == ["Unix"]


def test_units_and_times_are_none_where_a_cell_is_none() -> None:
    assert epoch_unit(pd.Series([SECONDS, None])) is None
    assert epoch_unit(pd.Series(["a", "1704067200"])) is None
    assert epoch_unit(pd.Series([202401311530, 202401311630])) is None
    assert epoch_unit(pd.Series(range(100))) is None
    assert times_of_day(pd.Series(["9:30", "24:00"])) is None
    assert times_of_day(pd.Series(["9:30", None])) is None
    assert times_of_day(pd.Series([930, 961])) is None
    half = [str(one) for one in times_of_day(pd.Series(["12:30 am", "12:30 PM", "1:05 p.m."]))]
    assert half == ["0 days 00:30:00", "0 days 12:30:00", "0 days 13:05:00"]


def test_dates_that_read_both_ways_say_how_they_were_read(tmp_path: Path) -> None:
    both = [f"{day:02}/{month:02}/2024" for month in range(1, 13) for day in range(1, 13)]
    prices = read(tmp_path, both, max_gap=400, order="sort")
    (note,) = [note for note in prices.notes if "two ways" in note]
    assert "01/01/2024 is, with the month first: say --data.day_first true or false" in note
    told = read(tmp_path, both, max_gap=400, order="sort", day_first=True)
    assert "month first" not in told.report() and told.assets[0].ds[1] == np.datetime64("2024-01-02")
    assert "month first" not in read(tmp_path, BUSINESS.strftime("%m/%d/%Y")).report()
