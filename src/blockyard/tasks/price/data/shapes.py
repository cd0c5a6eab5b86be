"""Tables without a header that are known by their shape: the dumps of exchanges and of trading platforms.

A shape is taken only where every row of the sample bears it out: lows below opens, closes and highs, times that rise
within a bar, volumes that are not negative. Where two shapes would do, or none, the file is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from blockyard.tasks.price.data.kinds import kind

# Name of the shape -> its columns; what stands under `ignore` means nothing.
SHAPES: dict[str, tuple[str, ...]] = {
    "Binance klines": (
        "open_time", "open", "high", "low", "close", "volume", "close_time", "quote_volume", "trades",
        "taker_buy_volume", "taker_buy_quote_volume", "ignore",
    ),
    "Kraken OHLCVT": ("time", "open", "high", "low", "close", "volume", "trades"),
    "Kraken OHLC with vwap": ("time", "open", "high", "low", "close", "vwap", "volume", "trades"),
    "Coinbase candles": ("time", "low", "high", "open", "close", "volume"),
    "MetaTrader bars": ("date", "time_of_day", "open", "high", "low", "close", "volume"),
    "dates and OHLCV": ("time", "open", "high", "low", "close", "volume"),
    "dates and OHLC": ("time", "open", "high", "low", "close"),
    "dates and prices": ("time", "close"),
}  # fmt: skip
# The smallest whole number that is a time since 1970 (in seconds, of 1973) rather than a date such as 20240131.
EPOCH = 1e8


def find_shape(rows: Sequence[Sequence[str]]) -> str | None:
    """Return the one shape that all rows bear out, or None."""
    found = [name for name, columns in SHAPES.items() if all(_bears_out(columns, row) for row in rows)]
    return found[0] if len(found) == 1 else None


def _bears_out(columns: tuple[str, ...], row: Sequence[str]) -> bool:
    if len(row) != len(columns):
        return False
    cells = dict(zip(columns, row))
    if not all(_MAY_BE.get(name, _amount)(cell) for name, cell in cells.items()):
        return False
    if "low" not in cells:
        return True
    low, high = float(cells["low"]), float(cells["high"])
    inside = [float(cells[name]) for name in ("open", "close") if name in cells]
    # A bar without trades may have no average price.
    inside += [float(cells[name]) for name in ("vwap",) if name in cells and float(cells[name])]
    if "close_time" in cells and not float(cells["open_time"]) < float(cells["close_time"]):
        return False
    return all(low <= value <= high for value in inside)


def _moment(cell: str) -> bool:
    return kind(cell) == "date" or (_number(cell) is not None and (float(cell) >= EPOCH or len(cell) == 8))


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _price(cell: str) -> bool:
    value = _number(cell)
    return value is not None and value > 0


def _amount(cell: str) -> bool:
    value = _number(cell)
    return value is not None and value >= 0


_MAY_BE: dict[str, Callable[[str], bool]] = {
    **dict.fromkeys(("open", "high", "low", "close"), _price),
    **dict.fromkeys(("time", "open_time", "close_time"), _moment),
    "date": lambda cell: kind(cell) == "date" or (_number(cell) is not None and len(cell) == 8),
    "time_of_day": lambda cell: kind(cell) == "time",
    "trades": lambda cell: (value := _number(cell)) is not None and value >= 0 and value == int(value),
    "ignore": lambda cell: True,
}  # fmt: skip
