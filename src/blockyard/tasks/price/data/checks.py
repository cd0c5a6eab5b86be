"""What is checked of every price series on its way from a table's rows to an `Asset`."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from blockyard.errors import InputError, require, suggest
from blockyard.tasks.price.data.clock import Clock, read_clock
from blockyard.tasks.price.data.config import PriceDataConfig
from blockyard.tasks.price.data.covariates import scale_of
from blockyard.tasks.price.data.reading import Reading
from blockyard.tasks.price.data.table import BARS, Asset, show_ds

# Usual split ratios, and how far the day's return may be from one: the market moves on that day, too. Real prices do
# fall by a third in a day, so a ratio of 3:2 has to be met more closely.
SPLIT_RATIOS = np.array([1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 15.0, 20.0, 25.0, 30.0, 50.0])
SPLIT_SLACK = np.where(SPLIT_RATIOS < 2, 0.03, 0.06)
SPLIT_SIGMAS, SPLIT_STAYS = 8.0, 5
DAY = np.timedelta64(1, "D")


def check_asset(reading: Reading, config: PriceDataConfig, least: int) -> tuple[Asset, Clock, list[str]]:
    """Check one asset and adjust its bars.

    Returns: the asset, the clock of its rows, and notes on what was seen or done.

    Raises:
        InputError: naming file, row and column.
    """
    notes: list[str] = []
    columns = reading.columns
    _leave_out_unpriced(reading, config, notes)
    clock = read_clock(reading, config)
    notes += [f"{reading.name}: {clock.asks}"] if clock.asks else []
    ds = _in_order(reading, clock.ds, config, notes)
    ds, ahead, future = _known_in_advance(reading, ds, notes)
    close = reading.numbers(columns.close)
    _positive(reading, close, columns.close)
    _gaps(reading, ds, config)
    if config.calendar is not None:
        _sessions(reading, ds, config.calendar)
    if len(close) < least:
        raise InputError(
            f"{_asset_in(reading)} has {len(close)} row{'s' * (len(close) != 1)}, too few: at least {least} are needed"
        )
    if np.ptp(close) == 0:
        raise InputError(
            f"{_asset_in(reading)}, column {columns.close}: every price is {close[0]:g}, there is nothing to forecast"
        )
    factor, raw = np.ones_like(close), None
    bars: dict[str, np.ndarray | None] = {name: _bar(reading, name) for name in BARS}
    if columns.raw_close is not None:
        raw = reading.numbers(columns.raw_close)
        _positive(reading, raw, columns.raw_close)
        factor = close / raw
        notes += _split_notes(reading, ds, raw, close, columns.volume)
        notes.append(f"{reading.name}: {columns.close} is forecast; open, high and low are adjusted like it")
    if config.splits == "refuse":
        # Also of a column that calls itself adjusted: it may be so of some splits and not of others.
        _refuse_split(reading, close, None if bars["open"] is None else bars["open"] * factor)
    _low_above_high(reading, bars)
    adjusted: dict[str, Any] = {name: None if values is None else values * factor for name, values in bars.items()}
    volume = _volume(reading)
    extra = {name: _further(reading, column) for name, column in columns.extra.items()}
    scales = {n: scale for n, values in extra.items() if (scale := scale_of(values, close if raw is None else raw))}
    asset = Asset(
        reading.name,
        ds,
        close,
        **adjusted,
        volume=volume,
        extra=extra,
        zone=clock.zone,
        raw=raw,
        scales=dict(scales),
        future=future,
        ahead=ahead,
        static={name: _static(reading, name) for name in columns.static},
    )
    return asset, clock, notes


def _known_in_advance(
    reading: Reading, ds: np.ndarray, notes: list[str]
) -> tuple[np.ndarray, np.ndarray | None, dict[str, np.ndarray]]:
    """Go on with the rows that have prices; dates of those without that come after them, and the columns known in
    advance over both."""
    names = reading.columns.future
    if not names:
        return ds, None, {}
    priced = np.isfinite(reading.numbers(reading.columns.close))
    after = np.arange(len(ds)) > np.flatnonzero(priced)[-1]
    between = int((~priced & ~after).sum())
    if between:
        rows = f"{between:,} rows without a price are" if between > 1 else "1 row without a price is"
        notes.append(f"{reading.name}: {rows} left out between others")
    kept = np.flatnonzero(priced | after)
    reading.keep(kept)
    future = {name: _further(reading, name) for name in names}
    ahead = ds[after]
    reading.keep(np.arange(int(priced.sum())))
    return ds[priced], ahead, future


def _static(reading: Reading, name: str) -> float | str:
    """Return the one value of a column that says what the asset is."""
    cells = reading.frame[name].iloc[reading.rows]
    first = cells.iloc[0]
    missing = cells.isna().to_numpy(bool)
    other = np.flatnonzero(missing | (cells != first).to_numpy(bool))
    if other.size:
        place = int(other[0])
        what = "the value is missing" if missing[place] else f"{cells.iloc[place]} comes after {first}"
        reading.wrong(place, name, f"{what}; data.static takes one value per asset")
    return float(first) if cells.dtype.kind in "fiub" else str(first).strip()


def _asset_in(reading: Reading) -> str:
    return reading.source if reading.unique_id is None else f"{reading.source}: {reading.unique_id}"


def _leave_out_unpriced(reading: Reading, config: PriceDataConfig, notes: list[str]) -> None:
    """Leave out rows without any price: days on which nothing was traded. A row with some of its prices has a fault."""
    column = reading.columns.close
    missing = ~np.isfinite(reading.numbers(column))
    # What is known in advance of a row may stand there before its price does: whether it comes after the last price is
    # seen when the rows are dated.
    waiting = missing & bool(reading.columns.future)
    for name in reading.columns.future:
        waiting &= np.isfinite(reading.numbers(name))
    if missing.all():
        raise InputError(f"{_asset_in(reading)}, column {column}: no row has a price")
    if not missing.any():
        return
    if config.missing == "refuse":
        for other in reading.columns.prices():
            partly = np.flatnonzero(missing & np.isfinite(reading.numbers(other)))
            if partly.size:
                more = f" (and in {partly.size - 1} more rows)" if partly.size > 1 else ""
                what = f"the price is missing, though {other} has one{more}"
                advice = "fill it, or leave such rows out with --data.missing drop"
                reading.wrong(int(partly[0]), column, f"{what}; {advice}")
    missing &= ~waiting
    if not missing.any():
        return
    if config.missing == "refuse" and len(reading.columns.prices()) > 1 and (missing[0] or missing[-1]):
        # At the newer end it is the bar that has not ended, and whoever forecasts from the row before should know.
        place = 0 if missing[0] else len(missing) - 1
        reading.wrong(place, column, "the bar has no price yet; leave it out with --data.missing drop")
    count, first = int(missing.sum()), reading.when(int(np.flatnonzero(missing)[0]))
    rows = f"{count:,} rows without a price are" if count > 1 else "1 row without a price is"
    notes.append(f"{reading.name}: {rows} left out, {f'the first {first}' if count > 1 else first}")
    reading.keep(np.flatnonzero(~missing))


def _in_order(reading: Reading, ds: np.ndarray, config: PriceDataConfig, notes: list[str]) -> np.ndarray:
    column = reading.columns.ds
    step = np.diff(ds.astype(np.int64))
    back = np.flatnonzero(step < 0)
    if back.size and (step < 0).all():
        # As the pages of exchanges list them; nothing is unclear about it.
        reading.keep(np.arange(len(ds))[::-1])
        notes.append(f"{reading.name}: rows run from new to old and are read in the order of time")
        return ds[::-1].copy()
    if back.size and config.order == "refuse":
        order = np.argsort(ds, kind="stable")
        _no_duplicates(reading, ds, order)
        place = int(back[0]) + 1
        before = f"comes after {show_ds(ds[place - 1])}"
        reading.wrong(place, column, f"{before}; sort the rows by date, or pass --data.order sort")
    if back.size:
        order = np.argsort(ds, kind="stable")
        reading.keep(order)
        ds = ds[order]
        notes.append(f"{reading.name}: rows were sorted by date")
    _no_duplicates(reading, ds, np.arange(len(ds)))
    return ds


def _no_duplicates(reading: Reading, ds: np.ndarray, order: np.ndarray) -> None:
    same = np.flatnonzero(np.diff(ds[order].astype(np.int64)) == 0)
    if same.size:
        first, again = sorted((int(order[same[0]]), int(order[same[0] + 1])))
        what = f"the date stands in row {int(reading.rows[first]) + 1} already"
        hint = "" if reading.columns.unique_id else "; several assets need a column unique_id"
        reading.wrong(again, reading.columns.ds, what + hint)


def _positive(reading: Reading, values: np.ndarray, column: str) -> None:
    bad = np.flatnonzero(~(values > 0) | ~np.isfinite(values))
    if bad.size:
        value = values[bad[0]]
        what = "the price is missing" if np.isnan(value) else f"{value:g} is not a price above 0"
        more = f" ({len(bad)} such rows)" if len(bad) > 1 else ""
        hint = "log returns need positive prices: take such rows out of the file, or begin or end it beside them"
        reading.wrong(int(bad[0]), column, f"{what}{more}; {hint}")


def _gaps(reading: Reading, ds: np.ndarray, config: PriceDataConfig) -> None:
    if len(ds) < 3:
        return
    dated = ds.dtype.kind == "M"
    steps = np.diff(ds) / DAY if dated else np.diff(ds).astype(np.float64)
    usual = float(np.median(steps))
    limit = config.max_gap or (15.0 if dated and usual <= 1.5 else 5 * usual)
    wide = np.flatnonzero(steps > limit)
    if wide.size:
        gap, unit = steps[wide[0]], "days" if dated else "steps"
        what = f"{gap:g} {unit} after the row before ({show_ds(ds[wide[0]])}), where {usual:g} is usual"
        advice = f"rows seem to be missing; fill them in, or pass --data.max_gap {np.ceil(steps.max()):g}"
        reading.wrong(int(wide[0]) + 1, reading.columns.ds, f"{what}: {advice}")


def _sessions(reading: Reading, ds: np.ndarray, code: str) -> None:
    """Refuse missing and foreign days: every session of an exchange must have its row, and no other day one."""
    calendars = require("exchange_calendars", extra="calendars")
    if ds.dtype.kind != "M":
        raise InputError(f"data.calendar={code}: {_asset_in(reading)} has no dates")
    if code not in calendars.get_calendar_names():
        raise InputError(f"data.calendar={code!r} is unknown{suggest(code, calendars.get_calendar_names())}")
    days = ds.astype("datetime64[D]")
    # A calendar must span some sessions even where the file has a day or two.
    with warnings.catch_warnings():
        # The package and pandas warn each other's authors of coming changes.
        warnings.simplefilter("ignore")
        calendar = calendars.get_calendar(code, start=str(days[0]), end=str(days[-1] + 14))
    sessions = calendar.sessions.to_numpy("datetime64[D]")
    sessions = sessions[sessions <= days[-1]]
    missing = np.setdiff1d(sessions, days)
    if missing.size:
        place = int(np.searchsorted(days, missing[0]))
        more = f" ({missing.size} sessions in all)" if missing.size > 1 else ""
        reading.wrong(
            min(place, len(ds) - 1), reading.columns.ds, f"{code} session {missing[0]} before it{more} is missing"
        )
    further = np.flatnonzero(~np.isin(days, sessions))
    if further.size:
        reading.wrong(int(further[0]), reading.columns.ds, f"{days[further[0]]} is no session of {code}")


def jumps_like_splits(close: np.ndarray, opening: np.ndarray | None = None) -> np.ndarray:
    """Return rows whose close differs from the one before as after a split.

    The log return is near the log of a usual ratio, far outside what the 60 returns before it did, the price does not
    come back within five rows, and (where there are opens) most of the jump happened overnight.

    Args:
        close: prices, [T].
        opening: opens, [T], if known.
    """
    p = np.log(close)
    r = np.diff(p, prepend=p[0])
    near = (np.abs(np.abs(r)[:, None] - np.log(SPLIT_RATIOS)) <= SPLIT_SLACK).any(axis=1)
    found = []
    for row in np.flatnonzero(near):
        before = np.abs(r[max(row - 60, 1) : row])
        # Turmoil is no split: the days before were quiet, too.
        usual = max(np.median(before) * 1.4826, before[-20:].max() / 4) if row > 1 else 0.0
        overnight = r[row] if opening is None else np.log(opening[row]) - p[row - 1]
        after = np.abs(p[row : row + SPLIT_STAYS + 1] - p[row - 1])
        if abs(r[row]) > SPLIT_SIGMAS * usual and overnight * np.sign(r[row]) > abs(r[row]) / 2 < after.min():
            found.append(row)
    return np.array(found, dtype=np.int64)


def _refuse_split(reading: Reading, close: np.ndarray, opening: np.ndarray | None) -> None:
    rows = jumps_like_splits(close, opening)
    if rows.size:
        row = int(rows[0])
        jump = np.log(close[row] / close[row - 1])
        more = f" ({rows.size} such jumps)" if rows.size > 1 else ""
        what = f"log return {jump:+.3f} looks like a split in unadjusted prices{more}"
        reading.wrong(
            row, reading.columns.close, f"{what}; use adjusted ones, or pass --data.splits keep if it is real"
        )


def _split_notes(reading: Reading, ds: np.ndarray, raw: np.ndarray, close: np.ndarray, volume: str | None) -> list[str]:
    """Return what the adjusted column mended, and what it leaves."""
    notes = []
    for row in jumps_like_splits(raw):
        before, after = np.log(raw[row] / raw[row - 1]), np.log(close[row] / close[row - 1])
        if abs(after) < abs(before) / 2:
            columns = reading.columns
            notes.append(
                f"{reading.name}: unadjusted split on {show_ds(ds[row])} (row {int(reading.rows[row]) + 1}): "
                f"log return of {columns.raw_close} {before:+.3f}, of {columns.close} {after:+.3f}"
            )
    if notes and volume is not None:
        notes.append(f"{reading.name}: {volume} is the file's: unless it is adjusted, volume jumps at these splits")
    return notes


def _bar(reading: Reading, part: str) -> np.ndarray | None:
    column = getattr(reading.columns, part)
    if column is None:
        return None
    values = reading.numbers(column)
    _positive(reading, values, column)
    return values


def _low_above_high(reading: Reading, bars: dict[str, np.ndarray | None]) -> None:
    low, high = bars["low"], bars["high"]
    if low is None or high is None:
        return
    bad = np.flatnonzero(low > high)
    if bad.size:
        row = int(bad[0])
        reading.wrong(row, reading.columns.low, f"low {low[row]:g} is above high {high[row]:g}")


def _volume(reading: Reading) -> np.ndarray | None:
    column = reading.columns.volume
    if column is None:
        return None
    values = reading.numbers(column)
    bad = np.flatnonzero(~(values >= 0))
    if bad.size:
        value = values[bad[0]]
        what = "the volume is missing" if np.isnan(value) else f"{value:g} is not a volume"
        reading.wrong(int(bad[0]), column, f"{what}; put 0 where nothing was traded")
    return values


def _further(reading: Reading, column: str) -> np.ndarray:
    values = reading.numbers(column)
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        reading.wrong(int(bad[0]), column, "the value is missing; fill it, or leave the column out with --data.extra")
    return values
