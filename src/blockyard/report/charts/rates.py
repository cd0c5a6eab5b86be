"""The figure over the learning rate: which rate suits each choice, and how much it matters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.report.chart import Chart
from blockyard.report.drawing import draw_line, name_powers
from blockyard.report.palette import Palette
from blockyard.report.schema import Choice, Report, quality_word, with_unit
from blockyard.report.units import rate_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def figures_over_rate(report: Report) -> Chart | None:
    """Return the probes of the choices whose rates were searched for; None when none were."""
    found = [(i, choice) for i, choice in enumerate(report["choices"]) if choice.get("rate")]
    if not found:
        return None

    def draw(axes: Axes, palette: Palette) -> None:
        factors: set[float] = set()
        for i, choice in found:
            look, probes = palette.style(i), ended(choice)
            factors |= set(probes)
            draw_line(axes, list(probes), list(probes.values()), look)
            chosen = choice["rate"]["factor"]
            if chosen in probes:
                # A ring around the one that is taken: colour alone would not show it.
                axes.plot(
                    [chosen], [probes[chosen]], color=look.colour, marker="o", markersize=11, markerfacecolor="none"
                )
        name_powers(axes, sorted(factors), rate_label)
        axes.set_xlabel("learning rate, times the recipe's")
        axes.set_ylabel(with_unit(report, quality_word(report)))

    share = report["rates"]["share"] if "rates" in report else 0.0
    caption = (
        f"The {quality_word(report)} after {share:.0%} of the budget, at the recipe's learning rates times a factor; "
        "one seed of its own. Rings: the rate that is taken for the runs. A flat line is an answer, too: that choice "
        "needs no tuning."
    )
    return Chart("rates", "Which rate suits whom", caption, draw, group="rates")


def ended(choice: Choice) -> dict[float, float]:
    """Return the factors whose probes ended, in order, with their figures."""
    probes = zip(choice["rate"]["factors"], choice["rate"]["figures"])
    return {factor: figure for factor, figure in probes if figure is not None}
