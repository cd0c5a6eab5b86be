"""What a written cell looks like: a number, a date, a time of day, nothing, or other text.

Looks settle where a header ends and which columns are candidates; what a cell is worth is decided by clock.py and
numbers.py, which check every row.
"""

from __future__ import annotations

import re
from typing import Literal

Kind = Literal["number", "date", "time", "nothing", "text"]

# Marks for "no value": pandas' own, and those of FRED (.), investing.com (-) and of spreadsheets.
_EMPTY = (
    "",
    *("<NA>", "N/A", "n/a", "NA", "NULL", "null", "NaN", "nan", "-NaN", "-nan", "None"),
    *("#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "1.#IND", "1.#QNAN"),
)
MARKS = frozenset({".", "-", "--", "–", "—", "none", "ND", "NaT", "#DIV/0!", "#VALUE!", "#NV"})
NOTHING = MARKS.union(_EMPTY)
_MONTH = r"(?:jan|feb|mar|mär|apr|may|mai|jun|jul|aug|sep|oct|okt|nov|dec|dez)[a-zäé]*\.?"
_DAY = (
    r"\d{1,2}[-/.]\d{1,2}[-/.](?:\d{4}|\d{2})|\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{4}-\d{2}|\d{4}年\d{1,2}月\d{1,2}日"
    rf"|{_MONTH}[ -]\d{{1,2}},?[ -]\d{{4}}|\d{{1,2}}\.?[ -]{_MONTH}[ -]\d{{2,4}}|{_MONTH}[ -]\d{{4}}|\d{{4}}-?Q[1-4]"
)
_CLOCK = r"\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?(?: ?[ap]\.?m\.?)?"
_ZONE = r" ?(?:z|utc|gmt|[+-]\d{2}(?::?\d{2})?)"
TIME = re.compile(rf"^{_CLOCK}$", re.IGNORECASE)
DATE = re.compile(rf"^(?:(?:{_DAY})(?:[ T]{_CLOCK}(?:{_ZONE})?)?|\d{{8}}[ T]\d{{4,6}})$", re.IGNORECASE)
# A date and time that end in their distance from UTC.
OFFSET = re.compile(r"(?P<wall>.*\d:\d{2}(?::\d{2}(?:[.,]\d+)?)?) ?(?:Z|z|UTC|GMT|[+-]\d{2}(?::?\d{2})?)")
_NUMBER = re.compile(
    r"^[^\w.,+−-]{0,2}[+−-]?[$€£¥]?(?:\d[\d.,'’  ]*|[.,]\d+)(?:e[+-]?\d+)?\s?[kmbt%€$£¥]?$", re.IGNORECASE
)


def kind(cell: str) -> Kind:
    """Return what a cell looks like; a date of digits alone, such as 20240131, looks like a number."""
    if cell in NOTHING:
        return "nothing"
    if DATE.match(cell):
        return "date"
    if TIME.match(cell):
        return "time"
    return "number" if _NUMBER.match(cell) else "text"
