"""Reports: from a record to pages. What is written and drawn comes from report.json alone; nothing is trained here.

    beside the best mean a choice is worse (its interval leaves out zero), equivalent (within a margin) or undecided;
    all intervals of a report hold at once, at 95 %

Files, in reading order:

    schema.py    the shape of report.json, as types
    stats.py     means, intervals and differences over a handful of seeds
    ranking.py   the order, each choice beside the best, and looks where seeds are added by need
    verdict.py   what the runs allow one to say, and in which words (phrases.py)
    answers.py   is it worse, what if longer (learning.py), faster or smaller; wants.py: a purpose; confirmed.py: a
                 second text; earlier.py: smaller comparisons before this one
    reading.py   tables and sentences that both forms share; units.py: numbers and command lines as people read them
    page.py      the one page of comparisons, searches and benchmarks (report.css): its frame, header, figures, tables
    html.py      a comparison on it; text.py: Markdown and CSV
    notebook.py  Record, a dictionary that a notebook shows as a page; small tables for other objects
    parts.py     Parts: what a task adds to a comparison and its report
    chart.py     Chart, a figure; charts/ makes them of the pieces in drawing.py and trade_off.py; palette.py,
                 fonts.py (letters of every script) and render.py draw them
    write.py     every form of a report into a folder; load_report reads one

    A report is handed what its task adds; `blockyard.compare.write_report(load_report("DIR"), "DIR")` finds that out,
    and draws a report anew, after an update.

Fields and units: docs/report-schema.md; how to read a report: docs/comparing.md; pictures: docs/gallery.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.report.chart import Chart as Chart
    from blockyard.report.parts import Parts as Parts
    from blockyard.report.parts import Section as Section
    from blockyard.report.parts import Table as Table
    from blockyard.report.schema import Report as Report
    from blockyard.report.write import load_report as load_report
else:
    __all__ = exports(
        __name__,
        {
            "chart": "Chart",
            "parts": "Parts Section Table",
            "schema": "Report",
            "write": "load_report",
        },
    )
