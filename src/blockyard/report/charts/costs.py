"""Quality against what it costs: speed, cache, memory, with the line of choices that no other beats in both."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from blockyard.report import units
from blockyard.report.chart import Chart, mean_of_seeds
from blockyard.report.drawing import draw_line, name_powers
from blockyard.report.palette import Palette
from blockyard.report.schema import Choice, Report, higher_is_better, input_unit, quality_word, with_unit
from blockyard.report.trade_off import Point, draw_trade_off

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
    found = [Point(i, name, value, finals[name]["mean"], finals[name]["half_width"]) for i, name, value in points]

    def draw(axes: Axes, palette: Palette) -> None:
        draw_trade_off(axes, palette, found, label, fewer=better == "less", lower=not higher_is_better(report))
        axes.set_ylabel(with_unit(report, f"final {quality_word(report)}"))

    return draw
