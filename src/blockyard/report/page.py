"""The one page of comparisons, searches and benchmarks: a file with style and figures inside, no scripts, no network;
light, dark, phone and paper.

`page` puts sections together; the rest are the pieces of which sections are made, as text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from importlib import resources

from blockyard.report import units
from blockyard.report.chart import Chart
from blockyard.report.palette import LIGHT, MARKER_PATHS, PLACEHOLDER, SERIES
from blockyard.report.parts import Section, Table

Drawn = Callable[[Chart], str]
# Characters of a figure that is not broken at a line's end: "+0.231 ± 0.052".
SHORT = 15


def page(title: str, sections: Iterable[str]) -> str:
    """Put the sections of a page together; empty ones are left out."""
    body = "\n".join(section for section in sections if section)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style_sheet()}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def style_sheet() -> str:
    """Return the page's CSS, with the palette's colours."""
    text = resources.files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    for word, column in (("LIGHT_SERIES", 0), ("DARK_SERIES", 1)):
        text = text.replace(word, " ".join(f"--c{i}: {pair[column]};" for i, pair in enumerate(SERIES)))
    assert LIGHT.paper in text  # the page and the PNGs agree on what paper is
    return text


def prose(text: str) -> str:
    """Return escaped text in which an interval and an option of a command are not torn apart at a line's end."""
    text = escape(text).replace(" ± ", "\u00a0±\u00a0")
    return re.sub(r"--[a-z][\w.]*", r'<span class="nw">\g<0></span>', text)


def name_html(name: str) -> str:
    """Return a choice's name, to be broken at a line's end only between its parts."""
    parts = re.sub(r"([+/&,])", "\\1\u200b", name)
    return f'<span class="name">{escape(parts).replace(chr(0x200B), "<wbr>")}</span>'


def items(lines: Iterable[str], kind: str = "") -> str:
    """Return sentences as a list."""
    listed = "".join(f"<li>{prose(line)}</li>" for line in lines)
    return f"<ul{f' class={chr(34)}{kind}{chr(34)}' if kind else ''}>{listed}</ul>"


def header(title: str, verdict: Mapping[str, object], kind: str, facts: Iterable[tuple[str, str]]) -> str:
    """Return the title, the answer with what else to know of it, and the terms at a glance.

    Args:
        title: of the page.
        verdict: `headline` and `details`.
        kind: of the answer, for its colour.
        facts: label and value.
    """
    chips = "".join(f"<li>{escape(label)} <b>{escape(value)}</b></li>" for label, value in facts)
    # mypy: an object, since the verdicts of three schemas come here.
    details: list[str] = list(verdict["details"])  # type: ignore[call-overload]
    return (
        f'<header>\n<h1>{escape(title)}</h1>\n<div class="answer {escape(kind)}">\n'
        f'<p class="headline">{prose(str(verdict["headline"]))}</p>\n'
        + (f"{items(details)}\n" if details else "")
        + f'</div>\n<ul class="facts">{chips}</ul>\n</header>'
    )


def section(heading: str, *parts: str, lede: str = "", kind: str = "") -> str:
    """Return a heading, a sentence or two below it, and parts; nothing where there are no parts."""
    body = "\n".join(part for part in parts if part)
    if not body:
        return ""
    opening = f'<section class="{kind}">' if kind else "<section>"
    below = f'<p class="lede">{prose(lede)}</p>\n' if lede else ""
    return f"{opening}\n<h2>{escape(heading)}</h2>\n{below}{body}\n</section>"


def own_section(part: Section, charts: str = "") -> str:
    """Return a section that is given as data: tables, then charts."""
    return section(part.heading, *map(_captioned, part.tables), charts, lede=part.lede)


def _captioned(table: Table) -> str:
    found = cards_table(table.columns, table.rows, table.words)
    if table.folded:
        return f"<details><summary>{escape(table.caption)}</summary>\n{found}</details>"
    return (f"<h3>{escape(table.caption)}</h3>\n" if table.caption else "") + found


def figure(chart: Chart, drawn: Drawn, *, wide: bool = False) -> str:
    """Return a chart with its title and caption; a wide one stands alone under its section's heading."""
    title = "" if wide else f"<h3>{escape(chart.title)}</h3>"
    return (
        f"<figure{' class=wide' if wide else ''}>{title}\n{drawn(chart)}\n"
        f"<figcaption>{escape(chart.caption)}</figcaption></figure>"
    )


def grid(charts: Sequence[Chart], drawn: Drawn, key: str = "") -> str:
    """Return charts two abreast under the key of their lines and marks; nothing where there are none."""
    if not charts:
        return ""
    figures = "\n".join(figure(chart, drawn) for chart in charts)
    return (f"{key}\n" if key else "") + f'<div class="grid">\n{figures}\n</div>'


def swatch(index: int, *, marker_only: bool = False) -> str:
    """Return the line and marker of choice number `index`, for a key."""
    look = PLACEHOLDER.style(index)
    if marker_only:
        return marker(look.marker, look.css)
    dashes = f' stroke-dasharray="{" ".join(f"{d * 1.7:g}" for d in look.dashes)}"' if look.dashes else ""
    return line(
        look.css, dashes, f'<path d="{MARKER_PATHS[look.marker]}" transform="translate(17 0)" fill="{look.css}"/>'
    )


def marker(shape: str, colour: str) -> str:
    """Return a mark alone, for a key."""
    path = f'<path d="{MARKER_PATHS[shape]}" transform="translate(0 0)" fill="{colour}"/>'
    return f'<svg width="12" height="12" viewBox="0 0 12 12" aria-hidden="true">{path}</svg>'


def line(colour: str, dashes: str = "", mark: str = "") -> str:
    """Return a line with or without a mark on it, for a key."""
    path = f'<path d="M0 6h46" stroke="{colour}" stroke-width="2"{dashes}/>'
    return f'<svg class="swatch" viewBox="0 0 46 12" aria-hidden="true">{path}{mark}</svg>'


def key_of(names: Iterable[str]) -> str:
    """Return which line and mark is which choice."""
    listed = "".join(f"<li>{swatch(i)}{name_html(name)}</li>" for i, name in enumerate(names))
    return f'<ul class="key">{listed}</ul>'


def cards_table(columns: Sequence[str], rows: Iterable[Sequence[str]], text: Iterable[int] = ()) -> str:
    """Return a table whose rows are cards on a phone; the first column holds names, those in `text` words."""
    words = set(text)

    def kind(i: int) -> str:
        return ' class="text"' if i in words else ""

    head = "".join(f"<th{kind(i)}>{escape(column)}</th>" for i, column in enumerate(columns))
    body = ""
    for row in rows:
        cells = "".join(
            f'<td class="first">{name_html(cell)}</td>'
            if i == 0
            else f'<td{kind(i)} data-label="{escape(columns[i])}"><span>{_cell(cell, i in words)}</span></td>'
            for i, cell in enumerate(row)
        )
        body += f"<tr>{cells}</tr>"
    return f'<div class="scroll"><table class="cards"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(text: str, words: bool) -> str:
    """Return a cell; a short figure stays together with its unit or interval."""
    return f'<span class="nw">{escape(text)}</span>' if len(text) <= SHORT and not words else escape(text)


def command_box(command: str) -> str:
    """Return a command line to be copied."""
    return f'<div class="command"><pre>{prose(command)}</pre></div>'


def provenance(
    rows: Iterable[tuple[str, str]], command: str = "", file: str = "", record: Mapping[str, object] | None = None
) -> str:
    """Return how the figures came about.

    Args:
        rows: label and text.
        command: what makes them again; "" where it is among the rows.
        file: the file that holds all figures.
        record: what is in it: `schema`, `created`, and `provenance` with `seconds_total`.
    """
    again = f"<p>To run it again:</p>\n{command_box(command)}" if command else ""
    listed = "".join(f"<dt>{escape(label)}</dt><dd>{escape(value)}</dd>" for label, value in rows)
    last = ""
    if record is not None:
        # mypy: read for numbers alone.
        found: Mapping[str, float] = record["provenance"]  # type: ignore[assignment]
        spent = units.duration(found.get("seconds_total"))
        told = f"All figures are in {file} beside this file ({record['schema']}), made {record['created']}. "
        last = f'<p class="lede">{escape(told)}Total time: {escape(spent)}.</p>'
    return section("Provenance", again, f"<dl>{listed}</dl>", last)
