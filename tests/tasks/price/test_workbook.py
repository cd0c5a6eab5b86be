"""Excel's workbooks and the days that spreadsheets count: read by what cells are, not by how they are shown."""

from __future__ import annotations

import datetime as dt
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blockyard.errors import InputError
from blockyard.tasks.price.data.reader import read_prices
from blockyard.tasks.price.future import future_dates

N = 40
DAYS = [dt.date(2024, 1, 1) + dt.timedelta(n + 2 * (n // 5)) for n in range(N)]
CLOSES = [round(100 + (n * 7) % 13 + 0.125, 3) for n in range(N)]
FIRST = 45292  # 2024-01-01


def save(path: Path, *sheets: list[list[Any]]) -> Path:
    openpyxl = pytest.importorskip("openpyxl", reason="openpyxl is not installed")
    book = openpyxl.Workbook()
    book.remove(book.active)
    for number, rows in enumerate(sheets, 1):
        sheet = book.create_sheet(f"S{number}")
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def table(date: Any = lambda n: DAYS[n], close: Any = lambda n: CLOSES[n]) -> list[list[Any]]:
    return [["Date", "Close", "Volume"], *([date(n), close(n), 100 + n] for n in range(N))]


def check(path: Path) -> str:
    prices = read_prices(path)
    (asset,) = prices.assets
    assert np.array_equal(asset.close, CLOSES) and asset.volume is not None and asset.volume[3] == 103
    assert (asset.ds.astype("datetime64[D]") == np.array(DAYS, "datetime64[D]")).all()
    # Weekdays, which go on as such.
    assert future_dates(asset.ds, (1, 3)).astype("datetime64[D]").tolist() == [
        DAYS[-1] + dt.timedelta(3), DAYS[-1] + dt.timedelta(5)
    ]  # fmt: skip
    return prices.report()


def test_a_sheet_is_read_as_its_cells_are(tmp_path: Path) -> None:
    assert "sheet 'S1'" in check(save(tmp_path / "p.xlsx", table()))
    # Dates as text, as numbers without a date's format, titles above, an empty first column, newest first.
    check(save(tmp_path / "p.xlsx", table(date=lambda n: f"{DAYS[n]:%d.%m.%Y}")))
    check(save(tmp_path / "p.xlsx", table(date=lambda n: float(FIRST + (DAYS[n] - DAYS[0]).days))))
    check(save(tmp_path / "p.xlsx", [["Prices of ZZ"], [], *([None, *row] for row in table())]))
    turned = table()
    said = check(save(tmp_path / "p.xlsx", [turned[0], *turned[:0:-1]]))
    assert "rows run from new to old" in said


def test_numbers_stay_what_they_are_beside_text_with_commas(tmp_path: Path) -> None:
    """100.125 is a number in the sheet, though between 12,50 as text it would read as a hundred thousand."""
    rows = table()
    rows = [[*row, "note" if number == 0 else "12,50"] for number, row in enumerate(rows)]
    check(save(tmp_path / "p.xlsx", rows))


def test_the_first_sheet_that_holds_anything_is_read_and_the_others_named(tmp_path: Path) -> None:
    assert "sheet 'S2'; not read: 'S1', 'S3'" in check(save(tmp_path / "p.xlsx", [], table(), [["x", 1]]))
    with pytest.raises(InputError, match="has no sheet that holds anything"):
        read_prices(save(tmp_path / "e.xlsx", []))


def test_marks_for_no_value_and_words_below_are_left_out(tmp_path: Path) -> None:
    rows = table()
    rows[5][1] = "N/A"
    prices = read_prices(save(tmp_path / "p.xlsx", [*rows, ["Downloaded from a page"]]))
    assert len(prices) == N - 1 and "1 row without a price is left out" in prices.report()
    assert "below the table: 'Downloaded from a page'" in prices.report()


def test_what_is_no_workbook_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openpyxl", reason="openpyxl is not installed")
    (tmp_path / "p.xlsx").write_bytes(b"Date,Close\n")
    with pytest.raises(InputError, match=r"p\.xlsx cannot be read as an Excel workbook: "):
        read_prices(tmp_path / "p.xlsx")
    (tmp_path / "p.xls").write_bytes(b"\xd0\xcf\x11\xe0")
    with pytest.raises(InputError, match=r"\.xls is not read; save the sheet as \.xlsx or CSV"):
        read_prices(tmp_path / "p.xls")
    path = save(tmp_path / "p.xlsx", table())
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(InputError, match=r"openpyxl.*blockyard\[excel\]"):
        read_prices(path)


def test_days_since_1900_are_dates_where_the_name_says_so(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    count = [FIRST + (day - DAYS[0]).days for day in DAYS]
    for write in (str, lambda n: f"{n}.0"):
        rows = "".join(f"{write(n)},{c},{100 + k}\n" for k, (n, c) in enumerate(zip(count, CLOSES)))
        path.write_text("Date,Close,Volume\n" + rows)
        assert "days since 1899-12-30, as spreadsheets count them" in check(path)
    # With times: half past nine is .3958333 of a day.
    path.write_text("Trade Date,Close\n" + "".join(f"{n}.39583333,{c}\n" for n, c in zip(count, CLOSES)))
    assert read_prices(path).assets[0].ds[0] == np.datetime64("2024-01-01T09:30")
    path.write_text("ds,Close\n" + "".join(f"{n},{c}\n" for n, c in zip(count, CLOSES)))
    with pytest.raises(InputError, match=r"column ds holds 45292 …, which may be a spreadsheet's days or"):
        read_prices(path)
    # Rows that are numbered from 0 stay so, whatever the name.
    path.write_text("Date,Close\n" + "".join(f"{n},{c}\n" for n, c in enumerate(CLOSES)))
    assert not read_prices(path).assets[0].dated
