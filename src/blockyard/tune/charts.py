"""The figures of a search: fresh runs, history, curves, importance, and every option against the figure.

Finished trials are blue discs, those that were stopped early grey triangles, the best one an orange diamond: shape
tells what colour tells. What is far worse than the rest stands at the edge of a figure.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from blockyard.errors import require
from blockyard.report.chart import Chart
from blockyard.report.drawing import draw_runs, name_rows
from blockyard.report.palette import Palette
from blockyard.report.units import word
from blockyard.tune.dimension import Dimension
from blockyard.tune.schema import Trial, Tuning
from blockyard.tune.verdict import sign_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FINISHED, BEST, DEFAULT, STOPPED = 0, 1, 2, 5
MARKS = {FINISHED: "o", BEST: "D", DEFAULT: "s", STOPPED: "v"}
# Trials worse than the median by more than this many times its distance from the best stand at the edge.
FAR = 3.0


def charts_of(record: Tuning) -> list[Chart]:
    """Return the figures that this record has data for, in reading order."""
    dimensions = [Dimension.from_dict(found) for found in record["space"]]
    found = [_fresh(record), _history(record), _curves(record), _importance(record)]
    order = {row["name"]: i for i, row in enumerate(record["importance"])}
    found += [_slice(record, d) for d in sorted(dimensions, key=lambda d: order.get(d.name, len(order)))]
    found.append(_pair(record, dimensions))
    return [chart for chart in found if chart is not None]


def _judged(record: Tuning) -> list[Trial]:
    """Return trials with a figure, each settings once."""
    return [
        t
        for t in record["trials"]
        if t["value"] is not None and t["same_as"] is None and t["status"] in ("finished", "pruned")
    ]


def _best_number(record: Tuning) -> int | None:
    finished = [t for t in _judged(record) if t["status"] == "finished"]
    if not finished:
        return None
    sign = sign_of(record["quality"]["better"])
    return min(finished, key=lambda t: (sign * (t["value"] or 0.0), t["number"]))["number"]


def _label(record: Tuning) -> str:
    quality = record["quality"]
    side = "higher" if quality["better"] == "higher" else "lower"
    unit = f" ({quality['unit']})" if quality["unit"] else ""
    return f"{quality['metric']}{unit}; {side} is better"


def _limits(values: Sequence[float], better: str) -> tuple[float, float]:
    """Return an axis that shows the good trials in detail: the best, and as far beyond the median as FAR says."""
    sign = sign_of(better)
    towards = sorted(sign * value for value in values)
    best, middle, worst = towards[0], statistics.median(towards), towards[-1]
    end = min(worst, middle + FAR * max(middle - best, 1e-12))
    margin = 0.06 * max(end - best, 1e-12)
    low, high = sorted((sign * (best - margin), sign * (end + margin)))
    return low, high


def _fresh(record: Tuning) -> Chart | None:
    rows = [row for row in record["finals"] if row["mean"] is not None]
    if not rows:
        return None
    n = len(record["seeds"])

    def draw(axes: Axes, palette: Palette) -> None:
        for y, row in enumerate(rows):
            which = DEFAULT if row["trial"] is None else BEST if _is_best(record, row["name"]) else FINISHED
            values = [run["value"] for run in row["runs"] if run["value"] is not None]
            marks = (palette.series[which], MARKS[which])
            draw_runs(axes, y, values, row["mean"], row["half_width"], marks, palette.paper)
            if row["search_value"] is not None:
                axes.scatter([row["search_value"]], [y], s=40, marker="x", color=palette.soft, linewidths=1.3, zorder=3)
        name_rows(axes, [row["name"] for row in rows])
        axes.margins(x=0.08)
        axes.set_xlabel(_label(record))

    caption = f"Each mark is one run with a fresh seed, n = {n} each; a cross is what the search saw."
    if n > 1:
        caption += " The bar is the 95 % t-interval of the mean over seeds."
    height = 0.85 + 0.42 * len(rows)
    return Chart("fresh-runs", "Run again with fresh seeds", caption, draw, height=height, legend=False, group="answer")


def _is_best(record: Tuning, name: str) -> bool:
    return record["best"] is not None and record["best"]["name"] == name


def _history(record: Tuning) -> Chart | None:
    trials = _judged(record)
    if len(trials) < 2:
        return None
    sign, best_number = sign_of(record["quality"]["better"]), _best_number(record)
    default = next((row["mean"] for row in record["finals"] if row["trial"] is None), None)

    def draw(axes: Axes, palette: Palette) -> None:
        low, high = _limits([t["value"] or 0.0 for t in trials], record["quality"]["better"])
        _points(axes, palette, trials, [t["number"] for t in trials], (low, high), best_number)
        steps: list[tuple[int, float]] = []
        for trial in trials:
            value = trial["value"] or 0.0
            if trial["status"] == "finished" and (not steps or sign * value < sign * steps[-1][1]):
                steps.append((trial["number"], value))
        last = record["trials"][-1]["number"]
        if steps:
            xs, ys = zip(*[*steps, (last, steps[-1][1])])
            axes.step(xs, ys, where="post", color=palette.series[FINISHED], linewidth=1.3, zorder=2)
        if default is not None and low <= default <= high:
            axes.axhline(default, color=palette.series[DEFAULT], linewidth=1.3, dashes=(5, 3), zorder=1)
            axes.annotate(
                "default",
                (last, default),
                ha="right",
                va="bottom",
                color=palette.ink,
                fontsize=8.5,
                xytext=(0, 2),
                textcoords="offset points",
            )
        axes.set_ylim(low, high)
        axes.set_xlabel("trial")
        axes.set_ylabel(_label(record))
        axes.locator_params(axis="x", integer=True)

    caption = "Discs: finished trials; triangles: stopped early; diamond: the best; line: the best so far."
    if default is not None:
        caption += " Dashed: the default configuration's mean over fresh seeds."
    return Chart("history", "Trials in order", caption + _edge_words(trials, record), draw, legend=False)


def _edge_words(trials: Sequence[Trial], record: Tuning) -> str:
    low, high = _limits([t["value"] or 0.0 for t in trials], record["quality"]["better"])
    beyond = sum(not low <= (t["value"] or 0.0) <= high for t in trials)
    return f" {beyond} far off stand at the edge." if beyond else ""


def _points(
    axes: Axes,
    palette: Palette,
    trials: Sequence[Trial],
    xs: Sequence[float],
    limits: tuple[float, float],
    best_number: int | None,
) -> None:
    """Draw trials as marks at these places."""
    low, high = limits
    for which in (STOPPED, FINISHED, BEST):
        mine = [
            (x, min(max(t["value"] or 0.0, low), high))
            for x, t in zip(xs, trials)
            if which == (BEST if t["number"] == best_number else FINISHED if t["status"] == "finished" else STOPPED)
        ]
        if mine:
            size, above = (46, 4) if which == BEST else (26, 3)
            places, values = zip(*mine)
            axes.scatter(
                places,
                values,
                s=size,
                marker=MARKS[which],
                color=palette.series[which],
                zorder=above,
                edgecolors=palette.paper,
                linewidths=0.6,
                clip_on=False,
            )


def _curves(record: Tuning) -> Chart | None:
    trials = [t for t in _judged(record) if t["curve"] and len(t["curve"]["value"]) > 1]
    if len(trials) < 2:
        return None
    best_number = _best_number(record)

    def draw(axes: Axes, palette: Palette) -> None:
        ends = [v for t in trials for v in _known(t)[1][-1:]]
        low, high = _limits(ends, record["quality"]["better"])
        for trial in sorted(trials, key=lambda t: t["number"] == best_number):
            parts, values = _known(trial)
            best, stopped = trial["number"] == best_number, trial["status"] == "pruned"
            which = BEST if best else STOPPED if stopped else FINISHED
            axes.plot(
                [100 * part for part in parts],
                values,
                color=palette.series[which],
                linewidth=2.2 if best else 1.0,
                alpha=1.0 if best else 0.55,
                dashes=(3, 2) if stopped else (None, None),
                zorder=4 if best else 2,
            )
            if stopped:
                axes.scatter(
                    [100 * parts[-1]],
                    [values[-1]],
                    s=18,
                    marker=MARKS[STOPPED],
                    color=palette.series[STOPPED],
                    linewidths=0,
                    zorder=3,
                )
        axes.set_ylim(low, high)
        axes.set_xlim(0, 103)
        axes.set_xlabel("budget spent (%)")
        axes.set_ylabel(_label(record))

    caption = "Thick: the best trial; dashed, ending in a triangle: stopped early. What is far worse is cut off."
    return Chart("curves", "How the trials learnt", caption, draw, legend=False)


def _known(trial: Trial) -> tuple[list[float], list[float]]:
    curve: Any = trial["curve"]
    found = [(part, value) for part, value in zip(curve["part"], curve["value"]) if value is not None]
    return [part for part, _ in found], [value for _, value in found]


def _importance(record: Tuning) -> Chart | None:
    rows = record["importance"]
    if not rows:
        return None

    def draw(axes: Axes, palette: Palette) -> None:
        for y, row in enumerate(rows):
            axes.barh(y, 100 * row["share"], height=0.55, color=palette.series[FINISHED], zorder=2)
            axes.annotate(
                f"{100 * row['share']:.0f} %",
                (100 * row["share"], y),
                xytext=(4, 0),
                va="center",
                textcoords="offset points",
                color=palette.ink,
                fontsize=9,
            )
        name_rows(axes, [_short(row["name"]) for row in rows])
        axes.set_xlim(0, max(50.0, 118 * max(row["share"] for row in rows)))
        axes.set_xlabel("of the trials' order, explained alone (%)")

    fewest = min(row["n"] for row in rows)
    caption = (
        f"Share of the variance of the trials' ranks between an option's choices, or between the thirds of its range; "
        f"{fewest} trials or more each. Rough: options that only matter together show little."
    )
    height = 0.95 + 0.36 * len(rows)
    return Chart("importance", "Which options mattered", caption, draw, height=height, legend=False)


def _short(name: str) -> str:
    return name if len(name) <= 20 else name.partition(".")[2]


def _slice(record: Tuning, dimension: Dimension) -> Chart | None:
    trials = [t for t in _judged(record) if dimension.name in t["settings"]]
    if len(trials) < 2:
        return None
    best_number, default = _best_number(record), _default_of(record, dimension)

    def draw(axes: Axes, palette: Palette) -> None:
        limits = _limits([t["value"] or 0.0 for t in trials], record["quality"]["better"])
        places = _place_on(axes.xaxis, axes.set_xscale, dimension)
        xs = [places(t["settings"][dimension.name]) for t in trials]
        if not dimension.is_range:
            # Beside one another, in the order of their figures, where many share a value.
            xs = _spread_out(xs, [t["value"] or 0.0 for t in trials])
        _points(axes, palette, trials, xs, limits, best_number)
        if default is not None:
            axes.axvline(places(default), color=palette.series[DEFAULT], linewidth=1.3, dashes=(5, 3), zorder=1)
        axes.set_ylim(*limits)
        axes.set_xlabel(dimension.name)
        axes.set_ylabel(_label(record))

    caption = f"Every trial that drew {dimension.name}, n = {len(trials)}."
    if default is not None:
        caption += f" Dashed: the default, {word(default)}."
    name = f"option-{dimension.name.replace('.', '-')}"
    return Chart(name, dimension.name, caption + _edge_words(trials, record), draw, legend=False, group="options")


def _default_of(record: Tuning, dimension: Dimension) -> Any:
    """Return the default, where the option's axis has a place for it."""
    row = next((row for row in record["finals"] if row["trial"] is None), None)
    value = row["settings"].get(dimension.name) if row else None
    if dimension.is_range:
        return value if isinstance(value, int | float) and dimension.low <= value <= dimension.high else None
    return value if value in dimension.values and not isinstance(value, bool) else None


def _place_on(axis: Any, set_scale: Callable[..., Any], dimension: Dimension) -> Callable[[Any], float]:
    """Prepare an axis for the option's values; returns where on it each stands."""
    ticker = require("matplotlib.ticker", extra="report")
    if dimension.is_range:
        if dimension.log:
            set_scale("log")
            axis.set_major_locator(ticker.LogLocator(base=10, subs=_subs(dimension)))
            axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_locator(ticker.NullLocator())
        elif dimension.whole:
            axis.get_major_locator().set_params(integer=True)
        return float
    axis.set_ticks(range(len(dimension.values)), [_clipped(word(value)) for value in dimension.values])
    limits = axis.axes.set_xlim if axis is axis.axes.xaxis else axis.axes.set_ylim
    limits(-0.5, len(dimension.values) - 0.5)
    values = list(dimension.values)
    return lambda value: float(values.index(tuple(value) if isinstance(value, list) else value))


def _subs(dimension: Dimension) -> tuple[float, ...]:
    """Return ticks within a decade: more of them where there are few decades."""
    decades = math.log10(dimension.high / dimension.low)
    return (1.0, 2.0, 5.0) if decades < 2 else (1.0, 3.0) if decades < 3.2 else (1.0,)


def _clipped(text: str) -> str:
    return text if len(text) <= 16 else f"{text[:15]}…"


def _spread_out(xs: Sequence[float], values: Sequence[float]) -> list[float]:
    found = list(xs)
    for place in set(xs):
        mine = sorted((i for i, x in enumerate(xs) if x == place), key=lambda i: values[i])
        for rank, i in enumerate(mine):
            # A fixed zigzag: neighbours in height stand apart.
            found[i] = place + 0.11 * ((rank * 2) % 5 - 2) / 2
    return found


def _pair(record: Tuning, dimensions: Sequence[Dimension]) -> Chart | None:
    """Return the two options that mattered most, against one another."""
    by_name = {dimension.name: dimension for dimension in dimensions}
    names = [row["name"] for row in record["importance"]][:2]
    trials = [t for t in _judged(record) if all(name in t["settings"] for name in names)]
    if len(names) < 2 or len(trials) < 9:
        return None
    sign = sign_of(record["quality"]["better"])
    order = sorted(trials, key=lambda t: (t["status"] != "finished", -t["part"], sign * (t["value"] or 0.0)))
    cuts = [0, len(order) // 3, 2 * len(order) // 3, len(order)]

    def draw(axes: Axes, palette: Palette) -> None:
        across = _place_on(axes.xaxis, axes.set_xscale, by_name[names[0]])
        up = _place_on(axes.yaxis, axes.set_yscale, by_name[names[1]])
        looks = [("o", FINISHED, 44, 1.0), ("o", FINISHED, 22, 0.45), ("x", STOPPED, 20, 0.9)]
        for (marker, which, size, alpha), (start, end) in reversed(list(zip(looks, pairwise(cuts)))):
            mine = order[start:end]
            xs = [across(t["settings"][names[0]]) for t in mine]
            ys = [up(t["settings"][names[1]]) for t in mine]
            if not by_name[names[0]].is_range and not by_name[names[1]].is_range:
                xs = [x + 0.1 * ((i * 2) % 5 - 2) for i, x in enumerate(xs)]
            axes.scatter(
                xs,
                ys,
                s=size,
                marker=marker,
                color=palette.series[which],
                alpha=alpha,
                linewidths=0.9,
                zorder=2,
                # A cross is all edge.
                edgecolors=None if marker == "x" else palette.paper,
            )
        axes.set_xlabel(names[0])
        axes.set_ylabel(names[1])

    caption = "Large discs: the best third of the trials; small: the middle third; crosses: the rest."
    title = "The two that mattered most"
    return Chart("pair", title, caption, draw, legend=False, group="options")
