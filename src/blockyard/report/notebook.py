"""What a notebook shows: the page of a record within a cell, and small tables. No scripts, no network.

A notebook asks an object for `_repr_html_` and puts the text into its own page. So the style of a page that stands in a
cell reaches that cell alone, and small tables bring none: they look as the notebook's other tables do.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from blockyard.errors import MissingExtra
from blockyard.report.page import style_sheet

# The class around a page in a cell.
SCOPE = ".blockyard-page"
_RULE = re.compile(r"([^{}]+)\{")
_WHOLE_PAGE = {":root", "html", "body"}


class Record(dict[str, Any]):
    """The contents of a JSON record: the dictionary that it is, which a notebook shows as a page.

    Args:
        contents: of the record.
        show: makes the page of it, as HTML for a cell.
    """

    def __init__(self, contents: Mapping[str, Any], show: Callable[[Any], str]) -> None:
        super().__init__(contents)
        self._show = show

    def _repr_html_(self) -> str:
        """Return the page."""
        try:
            return self._show(self)
        except MissingExtra as error:
            # A reader learns what to install rather than where it failed.
            return f"<p>{escape(str(error))}</p>"


def in_a_cell(sections: Iterable[str], folded: Iterable[str] = (), summary: str = "") -> str:
    """Put sections of a page into a notebook's cell; empty ones are left out.

    Args:
        sections: shown at once.
        folded: shown when the reader opens them.
        summary: what is written where they are folded.
    """
    body = [section for section in sections if section]
    rest = "\n".join(section for section in folded if section)
    if rest:
        body.append(f"<details>\n<summary>{escape(summary)}</summary>\n{rest}\n</details>")
    joined = "\n".join(body)
    return f'<div class="{SCOPE[1:]}">\n<style>\n{scoped(style_sheet())}</style>\n{joined}\n</div>'


def own_prefix(record: Mapping[str, Any]) -> str:
    """Return what to put before the ids of a record's figures in a cell."""
    # Two records in one notebook: an id that both have would send the lines of one to the clip of the other.
    return f"r{hashlib.sha256(json.dumps(record, sort_keys=True, default=str).encode()).hexdigest()[:8]}-"


def scoped(css: str, scope: str = SCOPE) -> str:
    """Return the rules so that they reach nothing outside the elements of a class.

    Args:
        css: rules, some of them within `@media`; commas part selectors and nothing else.
        scope: the class, as a selector.
    """

    def prefixed(found: re.Match[str]) -> str:
        head = found[1]
        blank = head[: len(head) - len(head.lstrip())]
        if head.lstrip().startswith("@"):
            return found[0]
        names = [name.strip() for name in head.split(",")]
        inside = [scope if name in _WHOLE_PAGE else f"{scope} {name}" for name in names]
        return f"{blank}{', '.join(inside)} {{"

    return _RULE.sub(prefixed, re.sub(r"/\*.*?\*/", "", css, flags=re.DOTALL))


def small_table(heading: str, columns: Sequence[str], rows: Iterable[Sequence[str]], below: str = "") -> str:
    """Return a table without a style of its own.

    Args:
        heading: what it shows, above it.
        columns: the heads.
        rows: cells of text; the first column holds names.
        below: a sentence under it; "" for none.
    """
    left = ' style="text-align: left"'
    head = "".join(f"<th{left if i == 0 else ''}>{escape(column)}</th>" for i, column in enumerate(columns))
    body = "".join(
        "<tr>" + "".join(f"<td{left if i == 0 else ''}>{escape(cell)}</td>" for i, cell in enumerate(row)) + "</tr>\n"
        for row in rows
    )
    told = f"<p>{escape(below)}</p>\n" if below else ""
    return (
        f"<div>\n<p><b>{escape(heading)}</b></p>\n<table>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{body}</tbody>\n</table>\n{told}</div>"
    )
