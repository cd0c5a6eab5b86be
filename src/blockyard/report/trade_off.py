"""Quality against a cost, drawn: a point for each choice with its interval and name, and the line of those that no
other beats in both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from blockyard.errors import require
from blockyard.report import units
from blockyard.report.drawing import short
from blockyard.report.palette import Palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Point:
    """One choice in the plane of cost and quality.

    Args:
        index: of the choice, for its colour and mark.
        name: written beside it.
        cost: across.
        quality: up.
        half: half the width of the quality's interval; None for no bar.
    """

    index: int
    name: str
    cost: float
    quality: float
    half: float | None = None


def draw_trade_off(
    axes: Axes,
    palette: Palette,
    points: Sequence[Point],
    label: str,
    *,
    fewer: bool = True,
    lower: bool = True,
    faint: Sequence[Point] = (),
) -> None:
    """Draw the points, their intervals and names, and a stepped line through those that no other beats in both.

    Args:
        axes: matplotlib's.
        palette: of the drawing.
        points: the choices.
        label: of the cost; one with "bytes" in it has binary units.
        fewer: whether a lower cost is better.
        lower: whether a lower quality figure is better.
        faint: further points, small, hollow and without a name, that the line does not go by.
    """
    values = [point.cost for point in (*points, *faint)]
    wide = min(values) > 0 and max(values) / min(values) > 6
    if wide:
        axes.set_xscale("log", base=2)
    else:
        axes.margins(x=0.22)
    front = _front([(p.cost, p.quality) for p in points], fewer, lower)
    axes.plot(
        [x for x, _ in front],
        [y for _, y in front],
        color=palette.soft,
        linewidth=1,
        dashes=(2, 2),
        zorder=1,
        drawstyle="steps-post",
    )
    for point in faint:
        look = palette.style(point.index)
        axes.scatter(
            [point.cost],
            [point.quality],
            s=14,
            marker=look.marker,
            facecolors="none",
            edgecolors=look.colour,
            linewidths=0.8,
            zorder=2,
        )
    for point in points:
        look = palette.style(point.index)
        axes.errorbar(
            point.cost, point.quality, yerr=point.half or None, color=look.colour, linewidth=1.5, capsize=4, zorder=2
        )
        axes.scatter(
            [point.cost],
            [point.quality],
            s=52,
            marker=look.marker,
            color=look.colour,
            edgecolors=palette.paper,
            linewidths=0.8,
            zorder=3,
        )
    axes.margins(y=0.2)
    if wide:
        room = (max(values) / min(values)) ** 0.22
        axes.set_xlim(min(values) / room, max(values) * room)
    _plain_ticks(axes, label)
    _name_points(
        axes,
        [(point.cost, point.quality, short(point.name)) for point in points],
        [point.half or 0.0 for point in points],
        front,
        palette,
    )
    axes.set_xlabel(label)


def _front(points: Sequence[tuple[float, float]], fewer: bool, lower: bool) -> list[tuple[float, float]]:
    """Return the points that no other beats in both, from the best cost to the best quality."""
    sign, down = 1 if fewer else -1, 1 if lower else -1
    front: list[tuple[float, float]] = []
    for value, level in sorted(points, key=lambda p: (sign * p[0], down * p[1])):
        if not front or down * level < down * front[-1][1]:
            front.append((value, level))
    return front


def _plain_ticks(axes: Axes, label: str) -> None:
    """Put ticks at round numbers of the unit in which they are written, without exponents."""
    ticker = require("matplotlib.ticker", extra="report")
    in_bytes = "bytes" in label
    written = units.size if in_bytes else units.count
    if axes.get_xscale() == "linear":
        low, high = axes.get_xlim()
        unit = next((1024.0**k for k in (3, 2, 1) if high >= 1024**k), 1.0) if in_bytes else 1.0
        ticks = [tick * unit for tick in ticker.MaxNLocator(5).tick_values(low / unit, high / unit)]
        axes.set_xticks([tick for tick in ticks if low <= tick <= high])
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: written(value).replace(".00", "")))
    axes.xaxis.set_minor_locator(ticker.NullLocator())


def _name_points(
    axes: Axes,
    points: list[tuple[float, float, str]],
    half_widths: list[float],
    front: list[tuple[float, float]],
    palette: Palette,
) -> None:
    """Write each name beside its point, on the side where it hides least of points, bars, names and the line."""
    figure = axes.figure
    figure.canvas.draw()  # settles the limits and the layout, so that data have places on the page
    dots = [tuple(axes.transData.transform((x, y))) for x, y, _ in points]
    left_edge, right_edge = axes.bbox.x0, axes.bbox.x1
    scale = figure.dpi / 72
    taken = [(px - 6 * scale, py - 7 * scale, px + 6 * scale, py + 7 * scale) for px, py in dots]
    for (x, y, _), half in zip(points, half_widths):
        (px, low), (_, high) = axes.transData.transform([(x, y - half), (x, y + half)])
        taken.append((px - 3 * scale, low, px + 3 * scale, high))
    corners = [tuple(axes.transData.transform(corner)) for corner in front]
    for (x0, y0), (x1, y1) in pairwise(corners):  # a step: across at y0, then down at x1
        taken += [(min(x0, x1), y0 - 1, max(x0, x1), y0 + 1), (x1 - 1, min(y0, y1), x1 + 1, max(y0, y1))]
    for (x, y, name), (px, py) in sorted(zip(points, dots), key=lambda item: item[1][1]):
        long, high = 5.6 * len(name) * scale, 10 * scale
        best: tuple[float, float, float, str] | None = None
        for dx, dy, align in _SIDES:
            x0 = px + dx * scale - {"left": 0.0, "right": 1.0, "center": 0.5}[align] * long
            y0 = py + dy * scale
            box = (x0, y0, x0 + long, y0 + high)
            hidden = sum(_overlap(box, other) for other in taken)
            hidden += max(0.0, left_edge - box[0]) * high + max(0.0, box[2] - right_edge) * high
            if best is None or hidden < best[0]:
                best, chosen = (hidden, dx, dy, align), box
        assert best is not None
        taken.append(chosen)
        axes.annotate(
            name,
            (x, y),
            xytext=best[1:3],
            textcoords="offset points",
            fontsize=9,
            color=palette.ink,
            ha=best[3],
            va="bottom",
            annotation_clip=False,
        )


# Where a name may stand from its point: (right, up) in points, and which of its ends is nearest.
_SIDES = (
    (9, -5, "left"),
    (-9, -5, "right"),
    (0, 9, "center"),
    (0, -19, "center"),
    (7, 5, "left"),
    (-7, 5, "right"),
    (7, -15, "left"),
    (-7, -15, "right"),
    (9, 16, "left"),
    (-9, 16, "right"),
    (9, -27, "left"),
    (-9, -27, "right"),
)


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return wide * high if wide > 0 and high > 0 else 0.0
