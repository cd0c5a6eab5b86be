"""Pieces that the figures of comparisons, searches, benchmarks and tasks are drawn of, into axes of matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from blockyard.errors import require
from blockyard.report.palette import Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_line(axes: Axes, xs: Sequence[float], ys: Sequence[float], look: Style, *, markersize: float = 4.5) -> None:
    """Draw one choice's line with its marks."""
    axes.plot(
        xs,
        ys,
        color=look.colour,
        marker=look.marker,
        markersize=markersize,
        linewidth=1.7,
        dashes=look.dashes or (None, None),
    )


def draw_runs(
    axes: Axes,
    row: int,
    values: Sequence[float],
    mean: float | None,
    half: float | None,
    look: tuple[str, str],
    paper: str,
) -> None:
    """Draw the runs of one choice in its row, one mark each, and the interval of their mean as a bar behind them.

    Args:
        axes: matplotlib's.
        row: the choice's, from the top.
        values: of the runs.
        mean: of them.
        half: half width of its interval; None for no bar.
        look: colour and mark.
        paper: colour of the marks' edges.
    """
    colour, marker = look
    if half is not None and mean is not None:
        axes.errorbar(mean, row, xerr=half, color=colour, linewidth=9, alpha=0.28, zorder=2)
    heights = [row + 0.09 * ((i % 3) - 1) for i in range(len(values))]
    axes.scatter(values, heights, s=28, marker=marker, color=colour, edgecolors=paper, linewidths=0.6, zorder=3)


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Name rows along the vertical axis, the first at the top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.grid(False, axis="y")


def short(name: str, most: int = 22) -> str:
    """Return a name cut to so many characters, to be written into a figure; a dollar in it begins no formula."""
    return (name if len(name) <= most else f"{name[: most - 1]}…").replace("$", r"\$")


def name_powers(axes: Axes, ticks: Sequence[float], written: Callable[[Any], str] = str) -> None:
    """Make the horizontal axis logarithmic, with ticks at these values alone."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [written(tick) for tick in ticks])
    axes.minorticks_off()


def plain_decades(axes: Axes) -> None:
    """Make the vertical axis logarithmic, with ticks at 1, 2, 5 of each decade, written as numbers."""
    ticker = require("matplotlib.ticker", extra="report")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(ticker.LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())
