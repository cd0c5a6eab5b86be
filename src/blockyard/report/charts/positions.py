"""The loss over how much of a row has been read: what more context is worth to a choice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.report.chart import Chart, mean_of_seeds
from blockyard.report.drawing import draw_line, name_powers
from blockyard.report.palette import Palette
from blockyard.report.schema import Choice, Report, with_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def loss_over_position(report: Report) -> Chart | None:
    """Return the chart of the choices whose runs tell their loss by position; None when none do."""
    found = {i: means for i, choice in enumerate(report["choices"]) if (means := position_losses(choice))}
    if not found:
        return None

    def draw(axes: Axes, palette: Palette) -> None:
        ends: set[int] = set()
        for i, means in found.items():
            look = palette.style(i)
            ends |= set(means)
            draw_line(axes, list(means), list(means.values()), look)
        name_powers(axes, sorted(ends))
        axes.set_xlabel("tokens of the row read so far (up to)")
        axes.set_ylabel(with_unit(report, "loss"))

    caption = (
        "Loss on held-out text by the number of tokens that the model has seen of the row: where a line stops falling, "
        f"more context is worth nothing to that choice. {mean_of_seeds(report)}"
    )
    return Chart("loss-position", "Loss over position", caption, draw, group="costs")


def position_losses(choice: Choice) -> dict[int, float]:
    """Return upper end of each group of positions -> mean loss over the seeds that finished."""
    runs = [run["figures"] for run in choice["runs"] if "position_loss" in (run.get("figures") or {})]
    if not runs:
        return {}
    columns = zip(*(figures["position_loss"] for figures in runs))
    return dict(zip(runs[0]["positions"], (sum(column) / len(column) for column in columns)))
