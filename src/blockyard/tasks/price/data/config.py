"""What prices to read, how strictly, and where training, validation and test part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from blockyard.errors import InputError


@dataclass(frozen=True)
class PriceDataConfig:
    """The price data of a run.

    Args:
        path: CSV, Excel or parquet files, separated by commas; none means the S&P 500 that the arch package carries.
        id_column: column that names the asset; none looks for unique_id, symbol, ticker, …; one asset without.
        date_column: column of dates; none looks for ds, date, timestamp, ….
        price_column: column of the price to forecast; none looks for adj close, close, y, price, ….
        decimal: the decimal mark of written numbers: point, comma, or auto, as the file's own numbers say.
        day_first: 03/04/2024 is the third of April; none means as a date beyond the 12th shows, and with dots.
        extra: further numeric columns as features, known at the end of their row: all, none, or names with commas;
            columns in units of price become their ratio to the price.
        future: columns of numbers that are known in advance (calendars, announced events), separated by commas: their
            values at the steps that are forecast are inputs.
        static: columns that say what an asset is, one number or category each, separated by commas.
        missing: refuse rows that have some of their prices only, or drop them; rows without any are left out.
        order: refuse rows in no order, or sort them; rows that all run from new to old are turned round.
        splits: refuse a jump that looks like a split in unadjusted closes, or keep it as a real move.
        max_gap: longest distance between two rows in days; none means 15 for daily and denser rows, else 5 steps.
        calendar: an exchange's code such as XNYS: every session must have its row (extra: calendars).
        val_fraction: share of the dates before the test part that are kept for validation.
        test_fraction: share of the dates at the end that no choice may look at.
        train_end: last date of training; none means as val_fraction says.
        val_end: last date of validation; none means as test_fraction says.
        embargo: rows left out after each border, beyond the purge of every label that reaches over it.

    Raises:
        InputError: when a value is out of range.
    """

    path: tuple[str, ...] | None = None
    id_column: str | None = None
    date_column: str | None = None
    price_column: str | None = None
    decimal: Literal["auto", "point", "comma"] = "auto"
    day_first: bool | None = None
    extra: str = "all"
    future: str | None = None
    static: str | None = None
    missing: Literal["refuse", "drop"] = "refuse"
    order: Literal["refuse", "sort"] = "refuse"
    splits: Literal["refuse", "keep"] = "refuse"
    max_gap: float | None = None
    calendar: str | None = None
    val_fraction: float = 0.1
    test_fraction: float = 0.2
    train_end: str | None = None
    val_end: str | None = None
    embargo: int = 5

    def __post_init__(self) -> None:
        choices: dict[str, tuple[str, ...]] = {
            "missing": ("refuse", "drop"),
            "order": ("refuse", "sort"),
            "splits": ("refuse", "keep"),
        }
        choices["decimal"] = ("auto", "point", "comma")
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"data.{name}={getattr(self, name)!r} is not one of: {', '.join(allowed)}")
        for name in ("val_fraction", "test_fraction"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise InputError(f"data.{name}={getattr(self, name)} must lie between 0 and 1, both excluded")
        if self.val_fraction + self.test_fraction >= 1.0:
            raise InputError(
                f"data.val_fraction={self.val_fraction} and data.test_fraction={self.test_fraction} leave no training"
            )
        if self.max_gap is not None and not 0 < self.max_gap < float("inf"):
            raise InputError(f"data.max_gap={self.max_gap} must be a number of days above 0")
        if self.embargo < 0:
            raise InputError(f"data.embargo={self.embargo} must be at least 0")
