"""The header of a table of text: where it stands, what it names, and how it lies over the cells below.

Cells are counted, never shifted: rows with a cell more than the header are read where the cell is empty (a separator at
the end of every row) or where it can be seen what it is (names of rows), and refused otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from blockyard.errors import InputError
from blockyard.tasks.price.data.dialect import Dialect, Line, usual_width
from blockyard.tasks.price.data.kinds import Kind, kind
from blockyard.tasks.price.data.names import FIELDS, is_date_name, simple
from blockyard.tasks.price.data.shapes import EPOCH, SHAPES, find_shape

# What pandas and yfinance call the levels of their columns.
_LEVEL_NAMES = ("", "ticker", "tickers", "symbol", "symbols", "price", "attributes")


@dataclass(frozen=True)
class Header:
    """What stands above the rows.

    Args:
        names: one for each cell of a row.
        above: lines of the file above the first row.
        levels: field and ticker of each column, for headers of two levels; None for a column of all tickers.
        drop: places of columns that hold nothing, or only names of rows.
        said: what was noticed.
    """

    names: tuple[str, ...]
    above: int
    levels: tuple[tuple[str, str] | None, ...] | None = None
    drop: tuple[int, ...] = ()
    said: tuple[str, ...] = ()


def find_header(dialect: Dialect) -> Header:
    """Return where the header stands and what it names.

    Raises:
        InputError: when there is none and the table's shape is not known, or it does not lie over the rows.
    """
    lines = dialect.lines
    width = usual_width(lines)
    kinds = _column_kinds(lines, width)
    rows = next((number for number, line in enumerate(lines) if _is_row(line, kinds)), len(lines))
    if rows == 0:
        return _without(lines, width)
    first = _first_line(lines, rows, width)
    said = []
    if first:
        titles = ", ".join(repr(" ".join(filter(None, line.cells))[:60]) for line in lines[:first])
        said.append(f"above the header: {titles}")
    levels = _levels(lines[first:rows])
    if levels is not None:
        names, fields, used = levels
        return Header(names, lines[first + used - 1].end, fields, (), (*said, "a header of two levels"))
    header = lines[first]
    below = lines[first + 1 :]
    longest = max((len(line) for line in below), default=0)
    names, drop, more = _over(header, below, kinds, longest)
    return Header(mangled(names), header.end, None, drop, (*said, *more))


def mangled(names: Sequence[str]) -> tuple[str, ...]:
    """Return names as pandas gives them: "Unnamed: 2" for none, "Close.1" for a second Close."""
    seen: Counter[str] = Counter()
    found = []
    for place, written in enumerate(names):
        name = written or f"Unnamed: {place}"
        seen[name] += 1
        while seen[name] > 1 and f"{name}.{seen[name] - 1}" in names:
            seen[name] += 1
        found.append(f"{name}.{seen[name] - 1}" if seen[name] > 1 else name)
    return tuple(found)


def _column_kinds(lines: Sequence[Line], width: int) -> list[Kind]:
    """Return what most cells of each column look like, over the later half of the sample, where no header stands."""
    below = [line for line in lines[len(lines) // 2 :] if len(line) == width] or list(lines[-1:])
    found: list[Kind] = []
    for place in range(width):
        counts = Counter(kind(line.cells[place]) for line in below if place < len(line))
        counts.pop("nothing", None)
        found.append(counts.most_common(1)[0][0] if counts else "nothing")
    return found


def _is_row(line: Line, kinds: Sequence[Kind]) -> bool:
    """Return whether a line looks like those of the table, rather than like names or a title.

    Where the table has dates, these decide: tickers such as 000001 may stand in a header.
    """
    if len(line) < len(kinds):
        return False
    seen = [kind(cell) for cell in line.cells]
    if "date" in kinds:
        return any(a == b == "date" for a, b in zip(seen, kinds))
    numbers = [a for a, b in zip(seen, kinds) if b == "number"]
    return bool(numbers) and all(a in ("number", "nothing") for a in numbers) and "number" in numbers


def _first_line(lines: Sequence[Line], rows: int, width: int) -> int:
    """Return the header's first line: the first that is as wide as the table; shorter ones above it are titles."""
    for number in range(rows):
        line = lines[number]
        alone = sum(map(bool, line.cells)) == 1 and bool(line.cells[0]) and number + 1 < rows and width > 1
        if len(line) >= width and not alone:
            return number
    # A header one cell short of its rows stands right above them.
    return next((n for n in range(rows) if len(lines[n]) == width - 1 > 1), rows - 1)


def _levels(
    lines: Sequence[Line],
) -> tuple[tuple[str, ...], tuple[tuple[str, str] | None, ...], int] | None:
    """Return names, fields with tickers, and lines used, of a header that pandas writes for columns of two levels.

    One of two lines names fields alone (Close, High, …), the other a ticker for each; a third may name the index.
    """
    if len(lines) < 2 or len(lines[0]) != len(lines[1]) or len(lines[0]) < 2:
        return None
    upper, lower = lines[0].cells[1:], lines[1].cells[1:]
    if all(simple(cell) in FIELDS for cell in upper) and all(lower):
        fields, tickers = upper, lower
    elif all(simple(cell) in FIELDS for cell in lower) and all(upper):
        fields, tickers = lower, upper
    else:
        return None
    if len(set(zip(fields, tickers))) < len(fields):
        return None
    # Numbers may be tickers (000001), or a row whose date is broken.
    if any(kind(cell) == "number" for cell in lower) and lines[1].cells[0].lower() not in _LEVEL_NAMES:
        return None
    used, index = 2, next((line.cells[0] for line in lines[:2] if is_date_name(line.cells[0])), "")
    if len(lines) > 2 and lines[2].cells[0] and not any(lines[2].cells[1:]):
        used, index = 3, lines[2].cells[0]
    levels = (None, *zip(fields, tickers))
    return (index or "ds", *(f"{f} {t}" for f, t in zip(fields, tickers))), levels, used


def _over(
    header: Line, below: Sequence[Line], kinds: Sequence[Kind], longest: int
) -> tuple[tuple[str, ...], tuple[int, ...], tuple[str, ...]]:
    """Return names for every cell of a row, places of columns to drop, and what to say of it."""
    names, extra = header.names, longest - len(header)
    if extra <= 0:
        return names, (), ()
    long = [line for line in below if len(line) == longest]
    if all(not any(line.cells[len(names) :]) for line in below):
        places = tuple(range(len(names), longest))
        return (*names, *("" for _ in places)), places, ("rows end in a separator",)
    if extra == 1 and len(long) == len(below):
        dated = [place for place, name in enumerate(names) if is_date_name(name)]
        if not dated and kinds[0] == "date":
            return ("ds", *names), (), ("the first cell of a row, which the header leaves out, is its date",)
        counted = all(_is_count(line, number, below) for number, line in enumerate(below))
        moved = bool(dated) and _may_be_date(kinds[dated[0] + 1]) and not _dates(below, dated[0])
        if moved or (counted and not dated):
            return ("row", *names), (0,), ("the first cell of a row, which the header leaves out, is its name",)
    raise InputError(
        f"rows have {longest} cells ({_short(long[0].cells)}) where the header has {len(names)} "
        f"({_short(names)}); give each cell of a row its name in the header"
    )


def _is_count(line: Line, number: int, below: Sequence[Line]) -> bool:
    first = below[0].cells[0]
    return first.isdecimal() and len(first) < 19 and line.cells[0] == str(int(first) + number)


def _may_be_date(looks: Kind) -> bool:
    return looks in ("date", "number")


def _dates(below: Sequence[Line], place: int) -> bool:
    """Return whether the cells of a column are dates, or numbers that may be."""
    return all(_is_moment(line.cells[place]) for line in below[:20])


def _is_moment(cell: str) -> bool:
    if kind(cell) == "date":
        return True
    return cell.isdecimal() and len(cell) < 20 and (len(cell) == 8 or int(cell) >= EPOCH)


def _short(cells: Sequence[str]) -> str:
    shown = " ".join(", ".join(cells[:6]).split())
    return f"{shown[:80]}{', …' if len(cells) > 6 or len(shown) > 80 else ''}"


def _without(lines: Sequence[Line], width: int) -> Header:
    """Return the columns of a table that has no header, if its shape is known."""
    shape = find_shape([line.cells for line in lines])
    if shape is None:
        cells = f"{width} cell{'s' * (width != 1)}"
        raise InputError(
            f"the first line is a row ({_short(lines[0].cells)}) and no header, and its {cells} are no shape that is "
            "known; put a line with their names on top, such as Date,Open,High,Low,Close,Volume"
        )
    names = SHAPES[shape]
    drop = tuple(place for place, name in enumerate(names) if name == "ignore")
    return Header(names, 0, None, drop, (f"no header; columns as in {shape}",))
