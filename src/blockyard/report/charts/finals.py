"""Where each run ended: one mark a run, the interval of the mean as a bar behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.report.chart import Chart, seeds_in
from blockyard.report.drawing import draw_runs, name_rows
from blockyard.report.palette import Palette
from blockyard.report.ranking import finals
from blockyard.report.schema import Report, higher_is_better, with_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def final_losses(report: Report) -> Chart | None:
    order = {row["name"]: row for row in report["ranking"] if row["final"]["mean"] is not None}
    if not order:
        return None
    index = {choice["name"]: i for i, choice in enumerate(report["choices"])}
    values = {choice["name"]: finals(choice) for choice in report["choices"]}
    label = with_unit(report, f"final {report['quality']['metric']}")
    side = "right" if higher_is_better(report) else "left"

    def draw(axes: Axes, palette: Palette) -> None:
        names = list(order)
        for y, name in enumerate(names):
            look, final = palette.style(index[name]), order[name]["final"]
            marks = (look.colour, look.marker)
            draw_runs(axes, y, values[name], final["mean"], final["half_width"], marks, palette.paper)
        name_rows(axes, names)
        axes.margins(x=0.08)
        axes.set_xlabel(f"{label}; {side} is better")

    n = seeds_in(report)
    caption = f"Each mark is one run, n = {n} per choice."
    if any(row["final"]["half_width"] is not None for row in order.values()):
        caption += " The bar is the 95 % t-interval of the mean over seeds."
    else:
        caption += " One seed gives no interval."
    height = 0.85 + 0.42 * len(order)
    return Chart("final-loss", "Where each run ended", caption, draw, height=height, legend=False, group="runs")
