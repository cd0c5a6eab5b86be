"""One asset's rows on their way to an `Asset`, and the one line that says file, row and column when one is wrong.

Rows are counted from 1, without the header.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from blockyard.errors import InputError, require
from blockyard.tasks.price.data.columns import Columns

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class Reading:
    """One asset's rows of a table, on their way to an `Asset`.

    Args:
        source: the file, for errors.
        frame: the whole table.
        columns: which column plays which part.
        rows: the asset's row numbers in the table, from 0.
        unique_id: its name, or None in a table of one asset.
        several_tables: whether other tables are read with it.
    """

    source: str
    frame: pd.DataFrame
    columns: Columns
    rows: np.ndarray
    unique_id: str | None
    several_tables: bool = False

    @property
    def name(self) -> str:
        """The asset's id; a table without ids gives it its own name."""
        return self.unique_id if self.unique_id is not None else Path(self.source).stem

    def wrong(self, place: int, column: str | None, what: str) -> NoReturn:
        """Refuse what stands at a place of `rows`."""
        date = self._date(place)
        where = f"{self.source}: row {int(self.rows[place]) + 1}{f' ({date})' if date else ''}"
        if self.unique_id is not None:
            where += f" of {self.unique_id}"
        raise InputError(f"{where}{f', column {column}' if column else ''}: {what}")

    def when(self, place: int) -> str:
        """Return a place of `rows` for notes: "on 2024-01-05", or "in row 5" where there are no dates."""
        date = self._date(place)
        return f"on {date}" if date else f"in row {int(self.rows[place]) + 1}"

    def _date(self, place: int) -> str:
        """Return the date as the file writes it, or ""."""
        if self.columns.ds is None:
            return ""
        date = self.frame[self.columns.ds].iloc[int(self.rows[place])]
        if require("pandas", extra="prices").isna(date):
            return ""
        shown = " ".join(f"{date!s}".replace(" 00:00:00", "").split())
        return shown[:40] + "…" * (len(shown) > 40)

    def numbers(self, column: str) -> np.ndarray:
        """Return a column as float64, NaN where a cell is empty.

        Raises:
            InputError: for a cell that is neither a number nor empty.
        """
        pandas = require("pandas", extra="prices")
        cells = self.frame[column].iloc[self.rows]
        try:
            values = pandas.to_numeric(cells, errors="coerce").to_numpy(np.float64, na_value=np.nan).copy()
        except OverflowError:
            # Hundreds of digits, which pandas does not take for a cell that is wrong.
            raise InputError(f"{self.source}: column {column} holds a number beyond 1.8e308") from None
        bad = np.flatnonzero(np.isnan(values) & ~cells.isna().to_numpy())
        if bad.size:
            self.wrong(int(bad[0]), column, f"{cells.iloc[int(bad[0])]!r} is not a number")
        return values

    def keep(self, places: np.ndarray) -> None:
        """Go on with some of the rows, or in another order."""
        self.rows = self.rows[places]
