"""Charts of a tear sheet: equity and drawdown, trailing ratios, IC over time, where outcomes lay in the forecast."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from blockyard.errors import require
from blockyard.report.chart import Chart
from blockyard.report.palette import Palette
from blockyard.report.render import dress
from blockyard.tasks.price.charts import draw_tenths

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Points of a line on the page, and steps of the shortest trailing figure.
POINTS, SHORTEST = 400, 20
Results = Mapping[str, Mapping[str, Any]]


def earning_charts(results: Results) -> list[Chart]:
    """Return equity with the drawdown below it, and trailing Sharpe ratio and volatility.

    Args:
        results: what is drawn, in the order of colours: name -> what `describe` says.
    """
    equity = Chart(
        "equity",
        "What one grew to, and how far below its high",
        "After costs. Dotted: cash, which earns nothing here. Below: the distance from the highest point so far.",
        _equity_drawer(results),
        height=4.4,
        legend=False,
    )
    window = trailing_window(next(iter(results.values())))
    if window is None:
        return [equity]
    caption = (
        f"Over the last {window} steps at a time, as figures of a year. Dotted: 0. Over so short a time a ratio "
        "moves by more than one by chance."
    )
    draw = _trailing_drawer(results, window)
    return [equity, Chart("trailing", "Trailing Sharpe ratio and volatility", caption, draw, height=4.4, legend=False)]


def trailing_window(found: Mapping[str, Any]) -> int | None:
    """Return half a year, or a third of what there is; None where that is too short to mean anything."""
    window = min(max(found["steps_per_year"] // 2, SHORTEST), found["steps"] // 3)
    return window if window >= SHORTEST else None


def ic_chart(found: Mapping[str, Any], horizon: int) -> Chart:
    """Return IC and RankIC over time, as `ic_over_time` gives them."""
    how = f"correlation over the last {found['window']} dates"
    if found["across"]:
        how = f"mean of the last {found['window']} dates of the correlation across assets"
    caption = f"Forecast and outcome, h = {horizon}: {how}. Solid: IC; dashed: RankIC, of ranks. Dotted: 0, no skill."

    def draw(axes: Axes, palette: Palette) -> None:
        x = _dates(found["ds"])
        axes.axhline(0, color=palette.soft, linewidth=0.9, linestyle=(0, (1, 2)))
        for number, key in enumerate(("ic", "rank_ic")):
            dashes = palette.style(number).dashes or (None, None)
            axes.plot(x, found[key], color=palette.style(0).colour, dashes=dashes, linewidth=1.5)
        axes.set_ylabel("IC")
        _date_axis(axes, x)

    return Chart("ic", "IC over time", caption, draw, legend=False)


def pit_chart(shares: Sequence[Mapping[str, float]], horizon: int) -> Chart:
    """Return the PIT histogram at one horizon."""
    caption = (
        f"Share of outcomes in each tenth of the forecast, h = {horizon}, with 95 % intervals; dashed: a tenth, where "
        "a calibrated forecast has them all. High at both ends is too narrow, high in the middle too wide."
    )

    def draw(axes: Axes, palette: Palette) -> None:
        draw_tenths(axes, shares, palette, palette.style(0).colour)

    return Chart("pit", "Where outcomes lay in the forecast", caption, draw, legend=False)


def _equity_drawer(results: Results) -> Callable[[Axes, Palette], None]:
    def draw(axes: Axes, palette: Palette) -> None:
        below = _panel_below(axes, palette, (2.6, 1))
        axes.axhline(1, color=palette.soft, linewidth=0.9, linestyle=(0, (1, 2)))
        x: Any = np.arange(2)
        for number, found in enumerate(results.values()):
            look = palette.style(number)
            line: dict[str, Any] = {
                "color": look.colour,
                "dashes": look.dashes or (None, None),
                "linewidth": 1.7 - 0.4 * number,
            }
            curve = np.array(found["curve"])
            depth = np.expm1(curve - np.maximum.accumulate(np.maximum(curve, 0.0)))
            last, deepest = thinned(depth, POINTS)
            x = _dates([found["ds"][place] for place in last])
            axes.plot(x, np.exp(curve[last]), **line)
            below.plot(x, 100 * deepest, **line)
            if number == 0:
                below.fill_between(x, 100 * deepest, 0, color=look.colour, alpha=0.18, linewidth=0)
        axes.set_ylabel("one grew to")
        below.set_ylabel("below high, %")
        below.set_ylim(top=0)
        _date_axis(below, x)

    return draw


def _panel_below(axes: Axes, palette: Palette, heights: tuple[float, float]) -> Any:
    """Return second axes below the given ones, with the same horizontal axis."""
    grid = axes.figure.add_gridspec(2, 1, height_ratios=heights)
    axes.set_subplotspec(grid[0])
    below = axes.figure.add_subplot(grid[1], sharex=axes)
    dress(below, palette)
    axes.tick_params(labelbottom=False)
    return below


def thinned(depth: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return last place of each of at most so many stretches, and the deepest drawdown in each, so that none is
    lost."""
    edges = np.unique(np.linspace(0, len(depth), min(most, len(depth)) + 1).astype(int))
    return edges[1:] - 1, np.minimum.reduceat(depth, edges[:-1])


def _trailing_drawer(results: Results, window: int) -> Callable[[Axes, Palette], None]:
    def draw(axes: Axes, palette: Palette) -> None:
        below = _panel_below(axes, palette, (1.6, 1))
        axes.axhline(0, color=palette.soft, linewidth=0.9, linestyle=(0, (1, 2)))
        x: Any = np.arange(2)
        for number, found in enumerate(results.values()):
            look = palette.style(number)
            mean, deviation = trailing(np.array(found["curve"]), window)
            root = np.sqrt(found["steps_per_year"])
            ratio = np.divide(mean, deviation, out=np.zeros_like(mean), where=deviation > 1e-12) * root
            some = np.unique(np.linspace(0, len(ratio) - 1, POINTS).astype(int))
            x = _dates([found["ds"][place + window - 1] for place in some])
            line: dict[str, Any] = {"color": look.colour, "dashes": look.dashes or (None, None), "linewidth": 1.5}
            axes.plot(x, ratio[some], **line)
            below.plot(x, 100 * deviation[some] * root, **line)
        axes.set_ylabel("Sharpe ratio")
        below.set_ylabel("volatility, %")
        below.set_ylim(bottom=0)
        _date_axis(below, x)

    return draw


def trailing(curve: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and standard deviation of the last `window` gains, from the first step that has so many on.

    Args:
        curve: cumulated log return after each step.
        window: steps.
    """
    gains = np.expm1(np.diff(curve, prepend=0.0))
    views = np.lib.stride_tricks.sliding_window_view(gains, window)
    return views.mean(axis=1), views.std(axis=1)


def _dates(ds: Sequence[str]) -> Any:
    """Return dates as matplotlib takes them; row numbers as numbers."""
    if all(str(d).isdigit() for d in ds):
        return np.array([int(d) for d in ds])
    return np.array([str(d).replace(" ", "T") for d in ds], "datetime64[s]")


def _date_axis(axes: Axes, x: Any) -> None:
    if x.dtype.kind == "M":
        dates = require("matplotlib.dates", extra="report")
        locator = dates.AutoDateLocator(minticks=3, maxticks=8)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator, show_offset=False))
