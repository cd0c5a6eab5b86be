"""The figures of a transplant's report: loss by kind, a token's time and bytes, loss against cache, healing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from blockyard.report import units
from blockyard.report.chart import HEIGHT, Chart
from blockyard.report.drawing import draw_line, name_powers, name_rows, plain_decades, short
from blockyard.report.palette import Palette
from blockyard.report.trade_off import Point, draw_trade_off
from blockyard.transplant.findings import Made, at, made
from blockyard.transplant.record import ALL, Decode, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ORIGINAL = "original"


def model_names(record: Record) -> list[str]:
    """Return the models in the order of their colours and marks: the original, then every choice that was made."""
    return [ORIGINAL, *(found.name for found in made(record))]


def loss_chart(record: Record) -> Chart | None:
    """Return loss above the original by kind of text, with its intervals."""
    there = made(record)
    if not there:
        return None
    kinds = [*record.original.loss, *([ALL] if len(record.original.loss) > 1 else [])]

    def draw(axes: Axes, palette: Palette) -> None:
        axes.axvline(0.0, color=palette.soft, linewidth=1, dashes=(2, 2), zorder=1)
        step = 0.7 / max(1, len(there))
        for i, found in enumerate(there):
            look = palette.style(i + 1)
            for row, kind in enumerate(kinds):
                difference = (found.measures.above or {})[kind]
                height = row + step * (i - (len(there) - 1) / 2)
                axes.errorbar(
                    difference.mean,
                    height,
                    xerr=None if math.isnan(difference.half) else difference.half,
                    color=look.colour,
                    marker=look.marker,
                    markersize=5,
                    linewidth=1.5,
                    capsize=3,
                    zorder=2,
                )
        name_rows(axes, [short(kind, 18) for kind in kinds])
        axes.set_xlabel("loss above the original (nats per token)")

    return Chart(
        "loss-by-kind",
        "Loss above the original",
        "Means with 95 % intervals, paired over pieces of text; left is better, and 0 is the original.",
        draw,
        height=max(HEIGHT * 0.6, 0.7 + len(kinds) * max(0.3, 0.16 * len(there))),
        group="loss",
    )


def trade_off_chart(record: Record) -> Chart | None:
    """Return loss above the original against the cache, of every choice and of what was tried while choosing."""
    there, base = made(record), at(record.original, record.context)
    points = [
        Point(i + 1, found.name, float(cost.cache_bytes), found.cost.mean, _half(found))
        for i, found in enumerate(there)
        if (cost := at(found.measures, record.context)) is not None
    ]
    if base is None or not points:
        return None
    points.insert(0, Point(0, ORIGINAL, float(base.cache_bytes), 0.0))
    faint = [
        Point(i + 1, "", float(trial.cache_bytes), trial.cost.mean)
        for i, found in enumerate(there)
        for trial in found.choice.trials
        if trial.cache_bytes
    ]

    def draw(axes: Axes, palette: Palette) -> None:
        draw_trade_off(axes, palette, points, f"cache at {record.context:,} tokens (bytes)", faint=faint)
        axes.set_ylabel("loss above the original (nats per token)")

    tried = (
        " Small hollow marks are what was tried while choosing, on the choosing text, in the colour of its choice."
        if faint
        else ""
    )
    return Chart(
        "loss-cache",
        "Loss against cache",
        "Lower and further left is better. The stepped line joins the models that no other beats in both; bars are "
        f"95 % intervals.{tried}",
        draw,
        group="trade-off",
    )


def _half(found: Made) -> float | None:
    return None if math.isnan(found.cost.half) else found.cost.half


def decode_charts(record: Record) -> list[Chart]:
    """Return a token's time and the cache's bytes over the context."""
    lines = _lines(record)
    if not lines:
        return []
    time = Chart(
        "token-time",
        "Time of one more token",
        "CPU milliseconds (on CUDA the device's), batch 1, all models in turns: medians and quartiles. Lower is "
        "better.",
        _draw_costs(
            lines, lambda cost: (cost.ms_per_token, cost.low, cost.high), lambda largest: ("ms", 1.0), "per token"
        ),
        group="decode",
    )
    size = Chart(
        "cache-bytes",
        "Bytes of the cache",
        "What all layers hold for one sequence. Lower is better.",
        _draw_costs(lines, lambda cost: (float(cost.cache_bytes),) * 3, units.binary_prefix, "cache", log=True),
        group="decode",
    )
    return [time, size]


def _lines(record: Record) -> list[tuple[int, Sequence[Decode]]]:
    """Return the timed models: their number in the order of colours, and their costs."""
    every = [record.original, *(found.measures for found in made(record))]
    return [(i, measures.decode) for i, measures in enumerate(every) if measures.decode]


def _draw_costs(
    lines: Sequence[tuple[int, Sequence[Decode]]],
    value: Callable[[Decode], tuple[float, float, float]],
    unit_of: Callable[[float], tuple[str, float]],
    what: str,
    *,
    log: bool = False,
) -> Callable[[Axes, Palette], None]:
    """Return a function that draws a line for each model over the context, with whiskers from quartile to quartile."""

    def draw(axes: Axes, palette: Palette) -> None:
        unit, factor = unit_of(max(value(cost)[2] for _, costs in lines for cost in costs))
        for i, costs in lines:
            look = palette.style(i)
            points = [tuple(part / factor for part in value(cost)) for cost in costs]
            axes.errorbar(
                [cost.context for cost in costs],
                [middle for middle, _, _ in points],
                yerr=[[m - low for m, low, _ in points], [high - m for m, _, high in points]],
                color=look.colour,
                marker=look.marker,
                markersize=5,
                linewidth=1.6,
                capsize=3,
                dashes=look.dashes or (None, None),
                zorder=2,
            )
        name_powers(axes, sorted({cost.context for _, costs in lines for cost in costs}), units.count)
        if log:
            plain_decades(axes)
        else:
            axes.set_ylim(0, None)
        axes.set_xlabel("tokens in the cache")
        axes.set_ylabel(f"{what} ({unit})")

    return draw


def alone_chart(record: Record) -> Chart | None:
    """Return what each layer by itself costs; None where that was not measured."""
    known = [
        (i + 1, [row for row in found.choice.rows if row.alone is not None]) for i, found in enumerate(made(record))
    ]
    if not any(rows for _, rows in known):
        return None

    def draw(axes: Axes, palette: Palette) -> None:
        axes.axhline(0.0, color=palette.soft, linewidth=1, dashes=(2, 2), zorder=1)
        for i, rows in known:
            look = palette.style(i)
            costs = [row.alone for row in rows if row.alone is not None]
            axes.errorbar(
                [row.layer for row in rows],
                [cost.mean for cost in costs],
                yerr=[0.0 if math.isnan(cost.half) else cost.half for cost in costs],
                color=look.colour,
                marker=look.marker,
                markersize=4,
                linestyle="none",
                linewidth=1,
                zorder=2,
            )
        axes.set_xlabel("layer")
        axes.set_ylabel("loss above the original (nats)")

    return Chart(
        "layers-alone",
        "Each layer alone",
        "What a layer costs when it alone is transplanted, on the choosing text, with 95 % intervals.",
        draw,
        group="layers",
    )


def healing_chart(record: Record) -> Chart | None:
    """Return the loss over the tokens of a healing; None where nothing was healed."""
    healed = [(i + 1, found) for i, found in enumerate(made(record)) if found.choice.healing]
    if not healed:
        return None

    def draw(axes: Axes, palette: Palette) -> None:
        for i, found in healed:
            points = found.choice.healing or ()
            losses = [sum(point.loss.values()) / len(point.loss) for point in points]
            draw_line(axes, [point.tokens for point in points], losses, palette.style(i))
        axes.set_xlabel("tokens trained on")
        axes.set_ylabel("loss (nats per token)")

    return Chart(
        "healing",
        "Healing",
        "Loss on the choosing text, the mean of its kinds, while what was transplanted is trained towards the "
        "original's predictions.",
        draw,
        group="healing",
    )
