"""What a figure of the report is; charts/ and the tasks make them, render.py draws them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blockyard.report.palette import Palette
from blockyard.report.schema import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 5.0, 3.5  # inches: 360 x 252 points


@dataclass(frozen=True)
class Chart:
    """One figure: a file name, what it shows in words, and how to draw it into axes."""

    name: str
    title: str
    caption: str
    draw: Callable[[Axes, Palette], None]
    height: float = HEIGHT
    legend: bool = True
    # The section it belongs to: answer, curves, rates, costs, attention, kernels, experts, or a task's own.
    group: str = "curves"


def seeds_in(report: Report) -> str:
    """Return how many seeds finished, for captions: "3", or "2 to 3" where choices differ."""
    ns = {sum(run["status"] == "finished" for run in choice["runs"]) for choice in report["choices"]}
    return str(ns.pop()) if len(ns) == 1 else f"{min(ns)} to {max(ns)}"


def mean_of_seeds(report: Report) -> str:
    """Word for captions "Mean of n = 3 seeds." or "One seed (n = 1)." """
    n = seeds_in(report)
    return "One seed (n = 1)." if n == "1" else f"Mean of n = {n} seeds."
