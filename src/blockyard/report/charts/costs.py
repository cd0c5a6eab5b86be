"""Quality against what it costs: speed, cache, memory, with the line of choices that no other beats in both."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from blockyard.errors import require
from blockyard.report import units
from blockyard.report.chart import Chart, mean_of_seeds
from blockyard.report.drawing import draw_line, name_powers
from blockyard.report.palette import Palette
from blockyard.report.schema import Choice, Report, higher_is_better, input_unit, quality_word, with_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def trade_offs(report: Report) -> list[Chart]:
    finals = {row["name"]: row["final"] for row in report["ranking"] if row["final"]["mean"] is not None}
    if len(finals) < 2:
        return []
    found = []
    for name, title, label, better, cost in _COSTS:
        points = [
            (i, choice["name"], value)
            for i, choice in enumerate(report["choices"])
            if choice["name"] in finals and (value := cost(choice)) is not None
        ]
        if len(points) < 2 or len({value for _, _, value in points}) < 2:
            continue
        caption = (
            f"{'Higher' if higher_is_better(report) else 'Lower'} and further "
            f"{'right' if better == 'more' else 'left'} is better. The stepped line joins the "
            f"choices that no other beats in both. {mean_of_seeds(report)}"
        )
        found.append(
            Chart(
                f"loss-{name}",
                title,
                caption,
                _point_drawer(report, points, finals, label.replace("token", input_unit(report)), better),
                group="costs",
            )
        )
    return found


def speed_over_length(report: Report) -> Chart | None:
    """Return the training speed over the length of a row, for the choices where it was measured."""
    found = [(i, choice["scaling"]) for i, choice in enumerate(report["choices"]) if "scaling" in choice]
    if not found or len(found[0][1]["lengths"]) < 2:
        return None
    unit = input_unit(report)
    lines = []
    for i, scaling in found:
        # A length at which a choice could not be measured is left out of its line.
        measured = [
            (n, speed) for n, speed in zip(scaling["lengths"], scaling["tokens_per_second"]) if speed is not None
        ]
        lines.append((i, [n for n, _ in measured], [speed for _, speed in measured]))
    draw = _drawer_over_length(lines, unit, f"training speed ({unit}s/s)")
    caption = f"Eager training steps with as many {unit}s in a batch at every length. A flat line scales linearly."
    return Chart("speed-length", "Training speed over length", caption, draw, group="costs")


def memory_over_length(report: Report) -> Chart | None:
    """Return the peak memory of training over the length of a row, for the choices where it was measured."""
    found = [
        (i, choice["scaling"])
        for i, choice in enumerate(report["choices"])
        if "scaling" in choice and all(choice["scaling"].get("peak_bytes") or [None])
    ]
    if not found or len(found[0][1]["lengths"]) < 2:
        return None
    unit = input_unit(report)
    lines = [(i, scaling["lengths"], [size / 2**20 for size in scaling["peak_bytes"] if size]) for i, scaling in found]
    draw = _drawer_over_length(lines, unit, "peak memory of training (MiB)")
    caption = f"Each in a fresh process, with as many {unit}s in a batch at every length. A flat line scales linearly."
    return Chart("memory-length", "Training memory over length", caption, draw, group="costs")


def _drawer_over_length(
    lines: list[tuple[int, list[int], list[float]]], unit: str, label: str
) -> Callable[[Axes, Palette], None]:
    """Return a function that draws lines of (index of the choice, lengths, values) from zero on, lengths in powers
    of two."""

    def draw(axes: Axes, palette: Palette) -> None:
        for i, lengths, values in lines:
            draw_line(axes, lengths, values, palette.style(i), markersize=5)
        axes.set_ylim(0, None)
        name_powers(axes, sorted({length for _, lengths, _ in lines for length in lengths}), units.count)
        axes.set_xlabel(f"length of a row ({unit}s)")
        axes.set_ylabel(label)

    return draw


def _speed(key: str) -> Callable[[Choice], float | None]:
    def cost(choice: Choice) -> float | None:
        speed: Any = choice["speed"]
        measured = speed.get(key) if speed else None
        return measured["median"] if measured else None

    return cost


def _peak(choice: Choice) -> float | None:
    return choice["memory"]["peak_bytes"] if choice["memory"] else None


_COSTS: tuple[tuple[str, str, str, str, Callable[[Choice], float | None]], ...] = (
    (
        "train-speed",
        "Quality against training speed",
        "training speed (tokens/s)",
        "more",
        _speed("train_wall"),
    ),
    (
        "cache",
        "Quality against cache",
        "cache (bytes/token)",
        "less",
        lambda choice: choice["cache_bytes_per_token"],
    ),
    ("memory", "Quality against memory", "peak memory of training (bytes)", "less", _peak),
    (
        "decode-speed",
        "Quality against generation speed",
        "generation speed (tokens/s)",
        "more",
        _speed("decode_wall"),
    ),
)


def _point_drawer(
    report: Report, points: list[tuple[int, str, float]], finals: dict[str, Any], label: str, better: str
) -> Callable[[Axes, Palette], None]:
    def draw(axes: Axes, palette: Palette) -> None:
        sign = -1 if better == "more" else 1
        values = [value for _, _, value in points]
        wide = min(values) > 0 and max(values) / min(values) > 6
        if wide:
            axes.set_xscale("log", base=2)
        else:
            axes.margins(x=0.22)
        front: list[tuple[float, float]] = []
        down = -1 if higher_is_better(report) else 1
        ends = ((v, finals[n]["mean"]) for _, n, v in points)
        for value, level in sorted(ends, key=lambda p: (sign * p[0], down * p[1])):
            if not front or down * level < down * front[-1][1]:
                front.append((value, level))
        axes.plot(
            [x for x, _ in front],
            [y for _, y in front],
            color=palette.soft,
            linewidth=1,
            dashes=(2, 2),
            zorder=1,
            drawstyle="steps-post",
        )
        for i, name, value in points:
            look, final = palette.style(i), finals[name]
            axes.errorbar(
                value,
                final["mean"],
                yerr=final["half_width"] or None,
                color=look.colour,
                linewidth=1.5,
                capsize=4,
                zorder=2,
            )
            axes.scatter(
                [value],
                [final["mean"]],
                s=52,
                marker=look.marker,
                color=look.colour,
                edgecolors=palette.paper,
                linewidths=0.8,
                zorder=3,
            )
        axes.margins(y=0.2)
        if not wide:
            _plain_ticks(axes, label)
        if wide:
            low, high = min(values), max(values)
            room = (high / low) ** 0.22
            axes.set_xlim(low / room, high * room)
            _plain_ticks(axes, label)
        named = [(v, finals[n]["mean"], _short(n)) for _, n, v in points]
        _name_points(axes, named, [finals[n]["half_width"] or 0.0 for _, n, _ in points], front, palette)
        axes.set_xlabel(label)
        axes.set_ylabel(with_unit(report, f"final {quality_word(report)}"))

    return draw


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


def _short(name: str) -> str:
    return name if len(name) <= 22 else name[:21] + "…"


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
