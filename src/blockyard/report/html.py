"""The report as one HTML file: style and figures inside, no scripts, no network; light, dark, phone and paper.

The same within a notebook's cell, where what follows the answer and the ranking is folded.
"""

from __future__ import annotations

from html import escape

from blockyard.report.chart import Chart, seeds_in
from blockyard.report.notebook import in_a_cell, own_prefix
from blockyard.report.page import (
    cards_table,
    figure,
    grid,
    header,
    items,
    key_of,
    name_html,
    own_section,
    page,
    prose,
    provenance,
    section,
    swatch,
)
from blockyard.report.parts import Parts
from blockyard.report.reading import facts, how_to_read, match_rows, provenance_rows, ranking_rows, run_rows, title
from blockyard.report.render import charts_of, render_svg
from blockyard.report.schema import Report, higher_is_better, quality_word


def render_html(report: Report, parts: Parts) -> str:
    """Make the whole page. `report` has been through `verdict.analyse`."""
    names = ", ".join(choice["name"] for choice in report["choices"])
    return page(f"{title(report)}: {names}", _sections(report, parts))


def render_cell(report: Report, parts: Parts) -> str:
    """Make the page for a notebook's cell: answer and ranking at once, the rest to be opened."""
    sections = _sections(report, parts, own_prefix(report))
    return in_a_cell(sections[:SHOWN], sections[SHOWN:], "Curves, costs, samples, every run, provenance")


# Header, what that means, ranking: the sections that a cell shows unfolded.
SHOWN = 3


def _sections(report: Report, parts: Parts, prefix: str = "") -> list[str]:
    """Return the sections of the page in order; `prefix` stands before the ids in its figures."""
    charts = charts_of(report, parts)
    drawn = {chart.name: render_svg(chart, report, prefix) for chart in charts}
    own = parts.sections(report)
    listed = {chart.name for part in own for chart in part.charts}
    key = key_of(choice["name"] for choice in report["choices"])

    def svg(chart: Chart) -> str:
        return drawn[chart.name]

    def of(group: str) -> list[Chart]:
        return [chart for chart in charts if chart.group == group and chart.name not in listed]

    def figures(heading: str, group: str) -> str:
        return section(heading, grid(of(group), svg, key))

    curves = f"How the {quality_word(report)} {'rises' if higher_is_better(report) else 'falls'}"
    filters = "Layers that filter: how far back their kernels reach, and which frequencies their gates pass."
    verdict = report["verdict"]
    return [
        header(title(report), verdict, verdict["kind"], facts(report, parts)),
        _answers(report, [figure(chart, svg, wide=True) for chart in of("answer")]),
        section("Ranking", _ranking(report), *(figure(chart, svg, wide=True) for chart in of("runs"))),
        figures(curves, "curves"),
        figures("Each at its own learning rate", "rates"),
        figures("What quality costs", "costs"),
        *(own_section(part, grid([c for c in part.charts if c.name in drawn], svg, key)) for part in own),
        figures("What attention looks at", "attention"),
        section("What the filters learnt", grid(of("kernels"), svg), lede=filters),
        figures("How busy the experts are", "experts"),
        _samples(report),
        _fairness(report),
        section("How to read this", items(how_to_read(report, parts), "reading")),
        provenance(provenance_rows(report), str(report["provenance"].get("command") or ""), "report.json", report),
    ]


def _answers(report: Report, pictures: list[str]) -> str:
    """Return the picture of the verdict, and the questions with which a reader comes."""
    found = [f"<h3>{prose(answer['question'])}</h3>\n{items(answer['sentences'])}" for answer in report["answers"]]
    return section("What that means", *pictures, *found, kind="answers")


def _ranking(report: Report) -> str:
    index = {choice["name"]: i for i, choice in enumerate(report["choices"])}
    columns, rows = ranking_rows(report)
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = []
    for row in rows:
        name = (
            f'<td class="first"><div class="choice"><span class="place">{escape(row.place)}</span>'
            f"{swatch(index[row.name], marker_only=True)}"
            f"{name_html(row.name)}</div></td>"
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
    return f'{table}\n<p class="lede">{escape(_ranking_note(report))}</p>'


def _ranking_note(report: Report) -> str:
    intervals = (
        f"Mean ± 95 % interval over {seeds_in(report)} seeds." if len(report["seeds"]) > 1 else "One seed: no interval."
    )
    return f"{intervals} Small figures compare with {report['reference']}, the reference."


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
            f"{name_html(choice['name'])}</span></header>"
            f'<pre><span class="prompt">{escape(sample["prompt"])}</span>{escape(sample["text"])}</pre></article>'
        )
    first = shown[0]["sample"]
    assert first is not None
    lede = f"The same prompt (grey) and the same sampling seed ({first['seed']}) for every choice, nothing selected."
    return section("What they write", f'<div class="samples">{"".join(cards)}</div>', lede=lede)


def _fairness(report: Report) -> str:
    match_columns, matches = match_rows(report)
    run_columns, runs = run_rows(report)
    return section(
        "Was it fair?",
        f"<h3>Size</h3>\n{cards_table(match_columns, matches, (1, 5))}",
        f"<h3>Every run</h3>\n{cards_table(run_columns, runs, (7,))}",
    )
