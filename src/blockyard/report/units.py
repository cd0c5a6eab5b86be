"""Numbers as people read them, 12.3 M, 4.0 KiB, 1 min 12 s, 1.62 ± 0.01, and command lines as they type them."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable
from typing import Any

NOTHING = "–"
_SI = (("", 1.0), ("k", 1e3), ("M", 1e6), ("G", 1e9), ("T", 1e12), ("P", 1e15), ("E", 1e18))


def prefix(largest: float) -> tuple[str, float]:
    """Return the SI prefix and factor under which `largest` is at least 1, for an axis or a figure."""
    chosen = _SI[0]
    for entry in _SI:
        if abs(largest) >= entry[1]:
            chosen = entry
    return chosen


def binary_prefix(largest: float) -> tuple[str, float]:
    """Return the binary unit and factor under which `largest` bytes are at least 1, for an axis."""
    for unit, factor in (("GiB", 2.0**30), ("MiB", 2.0**20), ("KiB", 2.0**10)):
        if largest >= factor:
            return unit, factor
    return "bytes", 1.0


def digits(value: float) -> str:
    """Return three significant digits, with thousands separators and no exponent."""
    if value == 0:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{min(decimals, 6)}f}"
    return text


def count(value: float | None, unit: str = "") -> str:
    """Word 12_345_678 as "12.3 M"; with unit "FLOP": "12.3 MFLOP". Whole numbers below 10 000 stay whole."""
    if value is None:
        return NOTHING
    if abs(value) < 10_000 and float(value).is_integer() and not unit:
        return f"{int(value):,}"
    letter, factor = prefix(value)
    return f"{digits(value / factor)} {letter}{unit}".rstrip()


def size(value: float | None) -> str:
    """Return bytes with binary prefixes: 16_384 -> "16.0 KiB"."""
    if value is None:
        return NOTHING
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024 or unit == "GiB":
            return f"{int(value)} B" if unit == "B" else f"{digits(value)} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


def duration(seconds: float | None) -> str:
    """Word 72.4 as "1 min 12 s"."""
    if seconds is None:
        return NOTHING
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def decimals_for(half_width: float | None) -> int:
    """Return decimals that show the interval with one or two digits: 0.4 -> 2, 0.012 -> 3, 0.0004 -> 4, none -> 3."""
    if half_width is None or half_width <= 0:
        return 3
    return 2 if half_width >= 0.1 else 3 if half_width >= 0.001 else 4


def plus_minus(mean: float | None, half_width: float | None, *, signed: bool = False) -> str:
    """Word "1.62 ± 0.01", or the mean alone when there is no interval."""
    if mean is None:
        return NOTHING
    places = decimals_for(half_width)
    text = f"{mean:{'+' if signed else ''}.{places}f}"
    return text if half_width is None else f"{text} ± {half_width:.{places}f}"


def ratio(value: float) -> str:
    """Word 16.0 as "16×", 1.84 as "1.8×"."""
    if value >= 9.5:
        return f"{value:,.0f}×"
    return f"{value:.1f}×" if value >= 1.95 else f"{value:.2f}×"


def times(factor: float) -> str:
    """Return a factor without trailing zeros: 16.0 -> "16×", 2.5 -> "2.5×", 1.20 -> "1.2×"."""
    figure = ratio(factor).removesuffix("×")
    return (figure.rstrip("0").rstrip(".") if "." in figure else figure) + "×"


def rate_label(factor: float) -> str:
    """Return a factor on the recipe's rates as people read it: ×2, ×1/4, ×1.5."""
    inverse = 1 / factor
    return f"×1/{inverse:g}" if factor < 1 and inverse == round(inverse) else f"×{factor:g}"


def command_line(command: str, options: Iterable[tuple[str, Any]]) -> str:
    """Word `blockyard compare lm --blocks 'standard;tva+vft' --seeds 3`."""
    words = [command]
    for name, value in options:
        words += [f"--{name}", shlex.quote(word(value))]
    return " ".join(words)


def word(value: Any) -> str:
    """Return a value as it is typed."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(map(word, value)) or "none"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value)
