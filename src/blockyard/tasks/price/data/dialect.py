"""The dialect of a file of text: its encoding, and what separates the cells of a line.

Both are told by the bytes, never by the file's name, and the separator by cells that can be counted: the one by which
most lines have equally many.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from blockyard.errors import InputError
from blockyard.tasks.price.data.names import spells_a_column

SEPARATORS = (",", ";", "\t", "|")
BLANKS = r"\s+"
# Lines that settle dialect and header.
SAMPLE_LINES, SAMPLE_CHARACTERS = 400, 1 << 20
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
# Of East Asia and of Cyrillic letters: nearly any bytes are text in some of them, so that a known name of a column has
# to show which.
_BY_NAME, HEAD_BYTES = ("gb18030", "big5", "shift_jis", "cp949", "cp1251"), 1 << 14
# What no text holds: control characters but tab and line ends, and a byte order mark in the middle.
_NO_TEXT = re.compile("[\x00-\x08\x0e-\x1f\ufeff\ufffe\uffff]")
_BETWEEN_BLANKS = re.compile(r'"[^"]*"|\S+')
_WORDS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars", BLANKS: "blanks"}


@dataclass(frozen=True)
class Line:
    """A line of the sample.

    Args:
        cells: without their quotes, and without blanks around them.
        end: lines of the file up to and including it.
        names: the cells with their blanks, as names of columns are kept.
    """

    cells: tuple[str, ...]
    end: int
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.cells)


@dataclass(frozen=True)
class Dialect:
    """How a file of text is to be read.

    Args:
        text: the whole file, decoded.
        encoding: as which.
        separator: one character, or a pattern of blanks.
        lines: the first lines that are not empty.
    """

    text: str
    encoding: str
    separator: str
    lines: tuple[Line, ...]

    def describe(self) -> str:
        """Say it in words: "cells between semicolons, cp1252"."""
        encoding = "" if self.encoding.startswith("utf-8") else f", {self.encoding}"
        return f"cells between {_WORDS[self.separator]}{encoding}"


def find_dialect(content: bytes) -> Dialect:
    """Return how bytes are to be read as a table.

    Raises:
        InputError: when they are no text, or hold nothing.
    """
    text, encoding = _decode(content)
    if not text.strip():
        raise InputError("the file is empty")
    try:
        separator, lines = _separator(text)
    except csv.Error as error:
        raise InputError(str(error)) from error
    return Dialect(text, encoding, separator, lines)


def _decode(content: bytes) -> tuple[str, str]:
    marked = next((encoding for mark, encoding in _MARKS if content.startswith(mark)), None)
    # What is not UTF-8 and holds no control characters is what spreadsheets of Western Europe write, unless names of
    # columns say more.
    for encoding in (marked,) if marked else ("utf-8", *filter(None, [_named_encoding(content)]), "cp1252"):
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if not _NO_TEXT.search(text):
            return text, encoding
    raise InputError("it is no text in UTF-8, UTF-16 or cp1252, and no known name of a column shows another encoding")


def _named_encoding(content: bytes) -> str | None:
    """Return the encoding, of those that names show, in which the head has a known one; None where none has."""
    if content.isascii():
        return None
    for encoding in _BY_NAME:
        # The cut may go through a letter.
        head = content[:HEAD_BYTES].decode(encoding, errors="ignore")
        if spells_a_column(re.split(r"[,;\t|\r\n]", head)):
            return encoding
    return None


def _separator(text: str) -> tuple[str, tuple[Line, ...]]:
    """Return what separates cells, and the sample cut by it."""
    if len(text) > SAMPLE_CHARACTERS:
        head = text[:SAMPLE_CHARACTERS]
        text = head[: max(head.rfind("\n"), head.rfind("\r")) + 1] or head
    best, score = tuple(_lines(text, ",")), (0.0, 0, 0)
    found = ","
    for separator in SEPARATORS:
        lines = tuple(_lines(text, separator))
        usual, count = _usual(lines)
        # Commas may be decimal marks, so they come last where another separator does as well.
        if usual > 1 and (one := (count / len(lines), usual, int(separator != ","))) > score:
            best, score, found = lines, one, separator
    if not score[1]:
        lines = tuple(_lines(text, BLANKS))
        if _usual(lines)[0] > 1:
            return BLANKS, lines
    return found, best


def _usual(lines: tuple[Line, ...]) -> tuple[int, int]:
    """Return how many cells most lines have, and how many lines have them; the more cells, where two are as
    frequent."""
    counts = Counter(len(line) for line in lines)
    return max(counts.items(), key=lambda item: (item[1], item[0]), default=(0, 0))


def usual_width(lines: tuple[Line, ...]) -> int:
    """Return how many cells most lines have."""
    return _usual(lines)[0]


def _lines(text: str, separator: str) -> Iterator[Line]:
    file = io.StringIO(text, newline="")
    taken = 0
    if separator == BLANKS:
        for number, line in enumerate(file, 1):
            cells = tuple(cell.strip('"') for cell in _BETWEEN_BLANKS.findall(line))
            if cells:
                taken += 1
                yield Line(cells, number, cells)
            if taken >= SAMPLE_LINES:
                return
        return
    reader = csv.reader(file, delimiter=separator)
    for row in reader:
        cells = tuple(cell.strip() for cell in row)
        if any(cells):
            taken += 1
            yield Line(cells, reader.line_num, tuple(row))
        if taken >= SAMPLE_LINES:
            return
