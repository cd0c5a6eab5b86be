"""How far every choice stands behind the best: the interval of the difference, and the margin that does not matter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.report.answers import margin_in_words
from blockyard.report.chart import Chart, seeds_in
from blockyard.report.drawing import name_rows
from blockyard.report.palette import Palette
from blockyard.report.schema import Report, higher_is_better, quality_unit, quality_word

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WORDS = ("worse", "equivalent", "undecided")


def differences_from_the_best(report: Report) -> Chart | None:
    """Return a row a choice, zero being the best mean; None where no difference has an interval."""
    rows = [row for row in report["comparisons"] if row["half_width"] is not None and row["verdict"] in _WORDS]
    if not rows:
        return None
    index = {choice["name"]: i for i, choice in enumerate(report["choices"])}
    # To the right is worse for losses and accuracies alike.
    sign, margin = -1 if higher_is_better(report) else 1, report["margin"]

    def draw(axes: Axes, palette: Palette) -> None:
        axes.axvspan(-margin, margin, color=palette.soft, alpha=0.22, linewidth=0)
        axes.axvline(0, color=palette.style(index[rows[0]["against"]]).colour, linewidth=2)
        for y, row in enumerate(rows):
            look, gap = palette.style(index[row["name"]]), sign * (row["difference"] or 0.0)
            axes.errorbar(gap, y, xerr=row["half_width"], color=look.colour, linewidth=2.4, capsize=4)
            axes.scatter([gap], [y], s=44, marker=look.marker, color=look.colour, edgecolors=palette.paper, zorder=3)
        name_rows(axes, [f"{row['name']}: {row['verdict']}" for row in rows])
        unit = f" ({quality_unit(report)})" if quality_unit(report) else ""
        axes.set_xlabel(f"{quality_word(report)} behind {rows[0]['against']}{unit}")

    caption = (
        f"Zero is {rows[0]['against']}, the best mean. An interval that leaves out zero: worse. One that lies within "
        f"the grey band (± {margin_in_words(report)}): equivalent. Any other: undecided. All hold at once, at 95 %, "
        f"n = {seeds_in(report)} per choice."
    )
    height = 0.85 + 0.42 * len(rows)
    return Chart("differences", "Behind the best", caption, draw, height=height, legend=False, group="answer")
