"""The report as one HTML file: style and figures inside, no scripts, no network; light, dark, phone and paper."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import Any

from blockyard.report import units
from blockyard.report.chart import seeds_in
from blockyard.report.palette import LIGHT, MARKER_PATHS, PLACEHOLDER, SERIES
from blockyard.report.parts import Parts, Section
from blockyard.report.reading import (
    facts,
    how_to_read,
    match_rows,
    provenance,
    ranking_rows,
    run_rows,
    title,
)
from blockyard.report.render import Chart, charts_of, render_svg
from blockyard.report.schema import Report, higher_is_better, quality_word


def render_html(report: Report, parts: Parts) -> str:
    """The whole page. `report` has been through `verdict.analyse`."""
    charts = charts_of(report, parts)
    drawn = {chart.name: render_svg(chart, report) for chart in charts}
    own = parts.sections(report)
    listed = {chart.name for section in own for chart in section.charts}
    charts = [chart for chart in charts if chart.name not in listed]
    curves = f"How the {quality_word(report)} {'rises' if higher_is_better(report) else 'falls'}"
    sections = [
        _header(report, parts),
        _answers(report, [c for c in charts if c.group == "answer"], drawn),
        _ranking(report, [c for c in charts if c.group == "runs"], drawn),
        _figures(report, curves, [c for c in charts if c.group == "curves"], drawn),
        _figures(report, "Each at its own learning rate", [c for c in charts if c.group == "rates"], drawn),
        _figures(report, "What quality costs", [c for c in charts if c.group == "costs"], drawn),
        *(_own(report, section, drawn) for section in own),
        _figures(report, "What attention looks at", [c for c in charts if c.group == "attention"], drawn),
        _kernels([c for c in charts if c.group == "kernels"], drawn),
        _figures(report, "How busy the experts are", [c for c in charts if c.group == "experts"], drawn),
        _samples(report),
        _fairness(report),
        _reading(report, parts),
        _provenance(report),
    ]
    body = "\n".join(section for section in sections if section)
    return whole_page(f"{title(report)}: {_names(report)}", body)


def whole_page(heading: str, body: str) -> str:
    """A document with the house's style inside.

    Args:
        heading: the title of the window, plain text.
        body: HTML.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(heading)}</title>\n"
        f"<style>\n{style_sheet()}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def style_sheet() -> str:
    """The page's CSS, with the palette's colours."""
    text = resources.files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    for word, column in (("LIGHT_SERIES", 0), ("DARK_SERIES", 1)):
        text = text.replace(word, " ".join(f"--c{i}: {pair[column]};" for i, pair in enumerate(SERIES)))
    assert LIGHT.paper in text  # the page and the PNGs agree on what paper is
    return text


def prose(text: str) -> str:
    """Escaped text in which an interval and an option of a command are not torn apart at a line's end."""
    text = escape(text).replace(" ± ", "\u00a0±\u00a0")
    return re.sub(r"--[a-z][\w.]*", r'<span class="nw">\g<0></span>', text)


def _name(name: str) -> str:
    """A choice's name, to be broken at a line's end only between its parts."""
    parts = re.sub(r"([+/])", "\\1\u200b", name)
    return f'<span class="name">{escape(parts).replace(chr(0x200B), "<wbr>")}</span>'


def _names(report: Report) -> str:
    return ", ".join(choice["name"] for choice in report["choices"])


def _header(report: Report, parts: Parts) -> str:
    verdict = report["verdict"]
    return page_header(title(report), verdict["kind"], verdict["headline"], verdict["details"], facts(report, parts))


def page_header(
    heading: str, kind: str, headline: str, details: Sequence[str], at_a_glance: Sequence[tuple[str, str]]
) -> str:
    """The answer in a sentence, what belongs to it, and the terms at a glance.

    Args:
        heading: what the page is about.
        kind: of the answer, a class of the style.
        headline: the sentence.
        details: further sentences.
        at_a_glance: labels and values.
    """
    lines = "".join(f"<li>{prose(line)}</li>" for line in details)
    chips = "".join(f"<li>{escape(label)} <b>{escape(value)}</b></li>" for label, value in at_a_glance)
    return (
        f"<header>\n<h1>{escape(heading)}</h1>\n"
        f'<div class="answer {escape(kind)}">\n<p class="headline">{prose(headline)}</p>\n'
        + (f"<ul>{lines}</ul>\n" if lines else "")
        + f'</div>\n<ul class="facts">{chips}</ul>\n</header>'
    )


def _answers(report: Report, charts: list[Chart], drawn: dict[str, str]) -> str:
    """The picture of the verdict, and the questions with which a reader comes."""
    pictures = "".join(_figure(chart, drawn, wide=True) for chart in charts)
    found = ""
    for answer in report["answers"]:
        lines = "".join(f"<li>{prose(line)}</li>" for line in answer["sentences"])
        found += f"<h3>{prose(answer['question'])}</h3>\n<ul>{lines}</ul>\n"
    if not pictures and not found:
        return ""
    return f'<section class="answers">\n<h2>What that means</h2>\n{pictures}\n{found}</section>'


def swatch(index: int, *, marker_only: bool = False) -> str:
    """The line and marker of choice number `index`, for a key."""
    look = PLACEHOLDER.style(index)
    shift = 0 if marker_only else 17
    path = f'<path d="{MARKER_PATHS[look.marker]}" transform="translate({shift} 0)" fill="{look.css}"/>'
    if marker_only:
        return f'<svg width="12" height="12" viewBox="0 0 12 12" aria-hidden="true">{path}</svg>'
    dashes = f' stroke-dasharray="{" ".join(f"{d * 1.7:g}" for d in look.dashes)}"' if look.dashes else ""
    line = f'<path d="M0 6h46" stroke="{look.css}" stroke-width="2"{dashes}/>'
    return f'<svg class="swatch" viewBox="0 0 46 12" aria-hidden="true">{line}{path}</svg>'


def _ranking(report: Report, charts: list[Chart], drawn: dict[str, str]) -> str:
    index = {choice["name"]: i for i, choice in enumerate(report["choices"])}
    columns, rows = ranking_rows(report)
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = []
    for row in rows:
        name = (
            f'<td class="first"><div class="choice"><span class="place">{escape(row.place)}</span>'
            f"{swatch(index[row.name], marker_only=True)}"
            f"{_name(row.name)}</div></td>"
        )
        cells = "".join(
            f'<td data-label="{escape(column)}"><span><span class="nw">{escape(main)}</span>'
            + (f"<small>{escape(small)}</small>" if small else "")
            + "</span></td>"
            for column, (main, small) in zip(columns[1:], row.cells)
        )
        body.append(f"<tr{' class=leader' if row.leader else ''}>{name}{cells}</tr>")
    table = (
        f'<div class="scroll"><table class="cards"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )
    pictures = "".join(_figure(chart, drawn, wide=True) for chart in charts)
    note = escape(_ranking_note(report))
    return f'<section>\n<h2>Ranking</h2>\n{table}\n<p class="lede">{note}</p>\n{pictures}\n</section>'


def _ranking_note(report: Report) -> str:
    intervals = (
        f"Mean ± 95 % interval over {seeds_in(report)} seeds." if len(report["seeds"]) > 1 else "One seed: no interval."
    )
    return f"{intervals} Small figures compare with {report['reference']}, the reference."


def _figure(chart: Chart, drawn: dict[str, str], *, wide: bool = False) -> str:
    return figure(chart, drawn[chart.name], wide=wide)


def figure(chart: Chart, svg: str, *, wide: bool = False) -> str:
    """A drawn chart with its title (but alone in its section, `wide`) and caption."""
    heading = "" if wide else f"<h3>{escape(chart.title)}</h3>"
    return (
        f"<figure{' class=wide' if wide else ''}>{heading}\n{svg}\n"
        f"<figcaption>{escape(chart.caption)}</figcaption></figure>"
    )


def _key(report: Report) -> str:
    """Which line and mark is which choice."""
    items = "".join(f"<li>{swatch(i)}{_name(choice['name'])}</li>" for i, choice in enumerate(report["choices"]))
    return f'<ul class="key">{items}</ul>'


def _figures(report: Report, heading: str, charts: list[Chart], drawn: dict[str, str]) -> str:
    if not charts:
        return ""
    figures = "\n".join(_figure(chart, drawn) for chart in charts)
    return f'<section>\n<h2>{escape(heading)}</h2>\n{_key(report)}\n<div class="grid">\n{figures}\n</div>\n</section>'


def _own(report: Report, section: Section, drawn: dict[str, str]) -> str:
    """A section of the task's own: tables, then charts."""
    lede = f'<p class="lede">{prose(section.lede)}</p>\n' if section.lede else ""
    tables = ""
    for table in section.tables:
        caption = f"<h3>{escape(table.caption)}</h3>\n" if table.caption else ""
        tables += f"{caption}{cards_table(list(table.columns), [list(row) for row in table.rows], frozenset())}\n"
    shown = [chart for chart in section.charts if chart.name in drawn]
    figures = "\n".join(_figure(chart, drawn) for chart in shown)
    grid = f'{_key(report)}\n<div class="grid">\n{figures}\n</div>\n' if shown else ""
    return f"<section>\n<h2>{escape(section.heading)}</h2>\n{lede}{tables}{grid}</section>"


def _kernels(charts: list[Chart], drawn: dict[str, str]) -> str:
    if not charts:
        return ""
    figures = "\n".join(_figure(chart, drawn) for chart in charts)
    lede = "Layers that filter: how far back their kernels reach, and which frequencies their gates pass."
    return (
        f'<section>\n<h2>What the filters learnt</h2>\n<p class="lede">{escape(lede)}</p>\n'
        f'<div class="grid">\n{figures}\n</div>\n</section>'
    )


def _samples(report: Report) -> str:
    index = {choice["name"]: i for i, choice in enumerate(report["choices"])}
    shown = [choice for choice in report["choices"] if choice["sample"]]
    if not shown:
        return ""
    cards = []
    for choice in shown:
        sample = choice["sample"]
        assert sample is not None
        cards.append(
            f'<article class="sample"><header><span class="choice">{swatch(index[choice["name"]], marker_only=True)}'
            f"{_name(choice['name'])}</span></header>"
            f'<pre><span class="prompt">{escape(sample["prompt"])}</span>{escape(sample["text"])}</pre></article>'
        )
    first = shown[0]["sample"]
    assert first is not None
    lede = f"The same prompt (grey) and the same sampling seed ({first['seed']}) for every choice, nothing selected."
    return (
        f'<section>\n<h2>What they write</h2>\n<p class="lede">{escape(lede)}</p>\n'
        f'<div class="samples">{"".join(cards)}</div>\n</section>'
    )


def cards_table(columns: list[str], rows: list[list[str]], text: frozenset[int]) -> str:
    """A table whose rows are cards on a phone; the first column holds names, those in `text` words."""

    def kind(i: int) -> str:
        return ' class="text"' if i in text else ""

    head = "".join(f"<th{kind(i)}>{escape(column)}</th>" for i, column in enumerate(columns))
    body = ""
    for row in rows:
        cells = "".join(
            f'<td class="first">{_name(cell)}</td>'
            if i == 0
            else f'<td{kind(i)} data-label="{escape(columns[i])}"><span>{escape(cell)}</span></td>'
            for i, cell in enumerate(row)
        )
        body += f"<tr>{cells}</tr>"
    return f'<div class="scroll"><table class="cards"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _fairness(report: Report) -> str:
    match_columns, matches = match_rows(report)
    run_columns, runs = run_rows(report)
    return (
        "<section>\n<h2>Was it fair?</h2>\n"
        f"<h3>Size</h3>\n{cards_table(match_columns, matches, frozenset({1, 5}))}\n"
        f"<h3>Every run</h3>\n{cards_table(run_columns, runs, frozenset({7}))}\n</section>"
    )


def _reading(report: Report, parts: Parts) -> str:
    items = "".join(f"<li>{prose(line)}</li>" for line in how_to_read(report, parts))
    return f'<section>\n<h2>How to read this</h2>\n<ul class="reading">{items}</ul>\n</section>'


def _provenance(report: Report) -> str:
    found = provenance(report)
    rows = "".join(f"<dt>{escape(label)}</dt><dd>{escape(value)}</dd>" for label, value in found)
    command: Any = report["provenance"].get("command")
    again = f'<p>To run it again:</p>\n<div class="command"><pre>{prose(str(command))}</pre></div>\n' if command else ""
    return (
        f"<section>\n<h2>Provenance</h2>\n{again}<dl>{rows}</dl>\n"
        f'<p class="lede">All figures are in report.json beside this file ({escape(report["schema"])}), '
        f"made {escape(report['created'])}. Total time: "
        f"{escape(units.duration(report['provenance'].get('seconds_total')))}.</p>\n</section>"
    )
