"""The figures of a benchmark: time, speed relative to the reference, and bytes, over the length."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from blockyard.bench.schema import Bench, Row
from blockyard.report import units
from blockyard.report.chart import Chart
from blockyard.report.drawing import name_powers, plain_decades
from blockyard.report.palette import Palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Value = Callable[[Row], tuple[float, float, float] | None]


def charts_of(bench: Bench) -> list[Chart]:
    """Return the figures that this benchmark has data for, in reading order."""
    found = []
    kinds = list(dict.fromkeys(kind for row in bench["rows"] for kind in row["times"]))
    for batch in sorted({row["batch"] for row in bench["rows"]}):
        for timed in kinds:
            found += _of_time(bench, timed, batch)
            if bench.get("roofline"):
                found.append(_of_share(bench, timed, batch))
    if bench.get("roofline"):
        found += [roofline_chart(bench, timed) for timed in kinds]
    smallest = min((row["batch"] for row in bench["rows"]), default=1)
    if any("cache_bytes" in row["facts"] for row in bench["rows"]):
        found.append(
            Chart(
                "cache-bytes",
                "Bytes of the cache",
                f"What the cache holds per layer, batch {smallest}, in the dtype of the run.",
                _lines(
                    bench,
                    smallest,
                    lambda row: _fact(row, "cache_bytes"),
                    "cache per layer ({})",
                    scale=units.binary_prefix,
                ),
                group="costs",
            )
        )
    if any(row["facts"].get("training_peak_bytes") is not None for row in bench["rows"]):
        found.append(
            Chart(
                "training-peak-bytes",
                "Peak memory of a training step",
                f"Per layer, beyond the idle process with the parameters and their gradients, batch {smallest}.",
                _lines(
                    bench,
                    smallest,
                    lambda row: _fact(row, "training_peak_bytes"),
                    "peak per layer ({})",
                    scale=units.binary_prefix,
                ),
                group="costs",
            )
        )
    return found


def _of_time(bench: Bench, timed: str, batch: int) -> list[Chart]:
    """Return seconds and relative speed of one timed thing at one batch size."""
    what = f"{timed}, batch {batch}"
    per = "token and layer" if timed == "decode" else "call and layer"
    n = max((row["times"][timed]["wall_seconds"]["n"] for row in bench["rows"] if timed in row["times"]), default=0)
    return [
        Chart(
            f"{_file(timed)}-time-batch{batch}",
            f"Time of {what}",
            f"Milliseconds per {per}; median and quartiles of {n} interleaved rounds.",
            _lines(bench, batch, lambda row: _spread(row, timed, "wall_seconds", 1000), "time (ms)"),
        ),
        Chart(
            f"{_file(timed)}-speedup-batch{batch}",
            f"Speed relative to {bench['reference']}: {what}",
            f"Above 1 is faster than {bench['reference']} in the same round; median and quartiles of {n} rounds.",
            _lines(bench, batch, lambda row: _spread(row, timed, "speedup", 1), "speed / reference", one=True),
        ),
    ]


def _of_share(bench: Bench, timed: str, batch: int) -> Chart:
    """Return the share of the roofline that one timed thing reaches at one batch size."""
    return Chart(
        f"{_file(timed)}-share-batch{batch}",
        f"Share of the roofline: {timed}, batch {batch}",
        "The least time that this machine's rates allow for the matrix products and the bytes that cannot be left out, "
        "as a share of the time taken; median and quartiles.",
        _lines(bench, batch, lambda row: _spread(row, timed, "share", 100), "% of the roofline", linear=True),
    )


def roofline_chart(bench: Bench, timed: str) -> Chart:
    """Return FLOPs per second over FLOPs per byte, each choice at all its sizes, under what the machine allows."""
    return Chart(
        f"{_file(timed)}-roofline",
        f"Roofline: {timed}",
        "Lines: what this machine allows, reading from memory and (dashed) from its caches. A choice's marks are its "
        "sizes, the largest filled.",
        lambda axes, palette: _draw_roofline(bench, timed, axes, palette),
    )


def _draw_roofline(bench: Bench, timed: str, axes: Axes, palette: Palette) -> None:
    rates = bench.get("roofline")
    assert rates is not None
    rows = [(row, row["times"][timed]) for row in bench["rows"] if timed in row["times"]]
    places = [measured["flops"] / measured["bytes"] for _, measured in rows]
    peak, reading = rates["flops_per_second"], [each["bytes_per_second"] for each in rates["reading"]]
    low, high = min(*places, peak / reading[-1]) / 2, max(*places, peak / reading[-1]) * 2
    for rate, dashes in ((reading[-1], (None, None)), (max(reading), (3, 2))):
        bend = min(max(peak / rate, low), high)
        # The roof rises with what is done to each byte, up to the rate of products.
        axes.plot([low, bend, high], [min(peak, low * rate), min(peak, bend * rate), peak], color=palette.soft,
                  linewidth=1.4, dashes=dashes, zorder=1)  # fmt: skip
    largest = max(row["length"] * row["batch"] for row, _ in rows)
    reached = []
    for i, choice in enumerate(bench["choices"]):
        look = palette.style(i)
        mine = [(row, measured) for row, measured in rows if row["choice"] == choice["name"]]
        xs = [measured["flops"] / measured["bytes"] for _, measured in mine]
        # By the share, from which what the machine lost meanwhile is taken out.
        ys = [m["flops"] * m["share"]["median"] / m["least_seconds"] for _, m in mine]
        reached += ys
        axes.plot(xs, ys, color=look.colour, linewidth=0.8, alpha=0.6, zorder=2)
        filled = [look.colour if row["length"] * row["batch"] == largest else "none" for row, _ in mine]
        axes.scatter(xs, ys, s=26, marker=look.marker, facecolors=filled, edgecolors=look.colour, zorder=3)
    plain_decades(axes)
    axes.set_ylim(min(reached) / 2, 1.5 * peak)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.minorticks_off()
    unit, factor = units.prefix(peak)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value / factor:g}")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("FLOPs per byte that cannot be left out")
    axes.set_ylabel(f"{unit}FLOP/s")


def _file(timed: str) -> str:
    """Return what was timed, as part of a file's name: "forward + backward, compiled" ->
    "forward-backward-compiled"."""
    return "-".join(re.findall(r"\w+", timed))


def _spread(row: Row, timed: str, key: str, factor: float) -> tuple[float, float, float] | None:
    measured: Any = row["times"].get(timed)
    if not measured or not measured[key]:
        return None
    return (
        factor * measured[key]["median"],
        factor * measured[key]["low"],
        factor * measured[key]["high"],
    )


def _fact(row: Row, name: str) -> tuple[float, float, float] | None:
    value = row["facts"].get(name)
    # A logarithmic axis has no place for 0.
    return None if not value else (float(value), float(value), float(value))


def _lines(
    bench: Bench,
    batch: int,
    value: Value,
    label: str,
    *,
    one: bool = False,
    linear: bool = False,
    scale: Callable[[float], tuple[str, float]] | None = None,
) -> Callable[[Axes, Palette], None]:
    """Return a function that draws a line for each choice over the length, with whiskers from quartile to quartile."""

    def draw(axes: Axes, palette: Palette) -> None:
        rows = [row for row in bench["rows"] if row["batch"] == batch]
        highest = max((point[2] for row in rows if (point := value(row))), default=1.0)
        unit, factor = scale(highest) if scale else ("", 1.0)
        if one:
            axes.axhline(1.0, color=palette.soft, linewidth=1, dashes=(2, 2), zorder=1)
        for i, choice in enumerate(bench["choices"]):
            look = palette.style(i)
            mine = [(row["length"], value(row)) for row in rows if row["choice"] == choice["name"]]
            points = [(length, *(part / factor for part in point)) for length, point in mine if point]
            if not points:
                continue
            lengths, middle, low, high = zip(*points)
            below = [m - part for m, part in zip(middle, low)]
            above = [part - m for m, part in zip(middle, high)]
            axes.errorbar(
                lengths,
                middle,
                yerr=[below, above],
                color=look.colour,
                marker=look.marker,
                markersize=5,
                linewidth=1.6,
                capsize=3,
                dashes=look.dashes or (None, None),
                zorder=2,
            )
        ticks = sorted({row["length"] for row in rows})
        name_powers(axes, ticks, units.count)
        if linear:
            axes.set_ylim(bottom=0)
        else:
            plain_decades(axes)
        axes.set_xlabel("tokens in the cache" if bench["kind"] == "decode" else "tokens in the sequence")
        axes.set_ylabel(label.format(unit))

    return draw
