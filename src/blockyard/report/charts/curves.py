"""Loss while training: against tokens, seconds and FLOPs, and the training loss itself."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from blockyard.report import units
from blockyard.report.chart import Chart, seeds_in
from blockyard.report.palette import Palette
from blockyard.report.schema import (
    LOST,
    Report,
    Run,
    higher_is_better,
    input_unit,
    quality_unit,
    quality_word,
    with_unit,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Share of the horizontal axis whose losses may lie above the vertical one.
STEEP_PART = 0.2

_AXES = {
    "tokens": ("training {}s", "", "the same data seen"),
    "seconds": ("training clock", "s", "the same time spent on this machine"),
    "flops": ("training compute", "FLOP", "the same arithmetic done"),
}


def loss_curves(report: Report) -> list[Chart]:
    """Return the quality against tokens, seconds and FLOPs, and what losses there are beside it."""
    found = []
    is_loss = not any("quality" in run for choice in report["choices"] for run in choice["runs"])
    which, metric = ("validation", "validation loss") if is_loss else ("quality", str(report["quality"]["metric"]))
    for key, (_, _, meaning) in _AXES.items():
        if not _long_enough(report, which):
            continue
        rises = which == "quality" and higher_is_better(report)
        way = "downwards" if higher_is_better(report) else "upwards"
        caption = f"{_capital(metric)} at {meaning}: read it {way} from one point of the axis. "
        caption += _band_words(report, whole=rises)
        against = key if key != "flops" else "FLOPs"
        if key == "tokens":
            against = f"{input_unit(report)}s"
        title = f"{_capital(quality_word(report))} against {against}"
        found.append(Chart(f"loss-{key}", title, caption, _curve_drawer(report, which, key)))
    if not is_loss and _long_enough(report, "validation"):
        caption = f"What is minimised, on data kept aside. {_band_words(report)}"
        found.append(
            Chart("validation-loss", "Validation loss", caption, _curve_drawer(report, "validation", "tokens"))
        )
    if any(len(_known(run["train"])) > 2 for choice in report["choices"] for run in choice["runs"]):
        caption = f"Training loss of every batch, averaged over a sliding window. {_band_words(report)}"
        found.append(Chart("train-loss", "Training loss", caption, _curve_drawer(report, "train", "tokens")))
    return found


def _long_enough(report: Report, which: str) -> bool:
    curves: list[Any] = [dict(run).get(which) for choice in report["choices"] for run in choice["runs"]]
    return any(curve and _known(curve) and len(curve["step"]) > 1 for curve in curves)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _band_words(report: Report, whole: bool = False) -> str:
    n = seeds_in(report)
    words = f"Line: mean of n = {n} seeds; band: their range." if n != "1" else "One seed (n = 1)."
    if not whole:
        words += " The steep beginning is cut off."
    if any(run["status"] in LOST for choice in report["choices"] for run in choice["runs"]):
        words += " A thin line ending in a cross is a run that diverged or failed."
    return words


def _known(curve: Any) -> list[int]:
    return [i for i, loss in enumerate(curve["loss"]) if loss is not None]


def _curve_drawer(report: Report, which: str, key: str) -> Callable[[Axes, Palette], None]:
    def draw(axes: Axes, palette: Palette) -> None:
        label, unit, _ = _AXES[key]
        label = label.format(input_unit(report))
        # A quality of which more is better starts near chance, not far off: nothing of it is cut.
        rises = which == "quality" and higher_is_better(report)
        runs = [run for choice in report["choices"] for run in choice["runs"] if which in run]
        curves: list[Any] = [dict(run)[which] for run in runs]
        largest = max((curve[key][-1] for curve in curves if curve[key]), default=1.0)
        letter, factor = units.prefix(largest)
        early: list[float] = []
        late: list[float] = []
        for i, choice in enumerate(report["choices"]):
            look = palette.style(i)
            # A run that diverged or failed stops early: it is drawn alone, so that it does not cut the mean short.
            for run in choice["runs"]:
                if run["status"] in LOST and which in run:
                    x, loss, _, _ = _over_seeds([run], which, key)
                    axes.plot(
                        [value / factor for value in x],
                        loss,
                        color=look.colour,
                        linewidth=0.9,
                        marker="x",
                        markevery=[-1] if x else [],
                        markersize=8,
                        markeredgewidth=2,
                    )
            ended = [r for r in choice["runs"] if r["status"] == "finished" and which in r]
            xs, means, lows, highs = _over_seeds(ended, which, key)
            if not xs:
                continue
            xs = [x / factor for x in xs]
            marks = max(1, len(xs) // 8)
            axes.plot(
                xs,
                means,
                color=look.colour,
                linewidth=1.7,
                dashes=look.dashes or (None, None),
                marker=look.marker,
                markersize=4.5,
                markevery=(marks // 2, marks),
                markeredgecolor=palette.paper,
                markeredgewidth=0.6,
            )
            if any(high > low for low, high in zip(lows, highs)):
                axes.fill_between(xs, lows, highs, color=look.colour, alpha=0.18, linewidth=0)
            # The first steps fall from log(vocabulary) and would press everything of interest into a corner.
            beyond = [m for x, m in zip(xs, means) if x >= STEEP_PART * largest / factor]
            early.append(beyond[0] if beyond else means[-1])
            late.extend(lows)
        if late and not rises:
            low, high = min(late), max(early)
            if high > low:
                axes.set_ylim(low - 0.06 * (high - low), high + 0.04 * (high - low))
        axes.set_xlim(0, None)
        loss_unit = report["quality"].get("loss_unit") or quality_unit(report)
        axes.set_ylabel(with_unit(report, quality_word(report)) if which == "quality" else f"loss ({loss_unit})")
        axes.set_xlabel(f"{label} ({_axis_unit(letter, unit)})" if letter or unit else label)

    return draw


def _axis_unit(letter: str, unit: str) -> str:
    return f"{letter}{unit}" if unit else {"k": "thousands", "M": "millions", "G": "billions"}.get(letter, letter)


def _over_seeds(runs: list[Run], which: str, key: str) -> tuple[list[float], list[float], list[float], list[float]]:
    """Return x, mean, lowest and highest loss over the runs, at the steps all of them logged."""
    series: list[dict[int, tuple[float, float]]] = []
    for run in runs:
        curve: Any = dict(run)[which]
        at = _known(curve)
        losses = [curve["loss"][i] for i in at]
        if which == "train":
            losses = _smooth(losses)
        if at:
            series.append({curve["step"][i]: (curve[key][i], loss) for i, loss in zip(at, losses)})
    if not series:
        return [], [], [], []
    common = sorted(set(series[0]).intersection(*series[1:]))
    common = _thin(common, 160)
    xs = [statistics.fmean(one[step][0] for one in series) for step in common]
    columns = [[one[step][1] for one in series] for step in common]
    return xs, [statistics.fmean(c) for c in columns], [min(c) for c in columns], [max(c) for c in columns]


def _smooth(losses: list[float]) -> list[float]:
    """Return centred moving average over about a fortieth of the run, shorter at the ends."""
    reach = max(1, len(losses) // 80)
    sums = [0.0]
    for loss in losses:
        sums.append(sums[-1] + loss)
    smooth = []
    for i in range(len(losses)):
        r = min(reach, i, len(losses) - 1 - i)
        smooth.append((sums[i + r + 1] - sums[i - r]) / (2 * r + 1))
    return smooth


def _thin(items: list[int], most: int) -> list[int]:
    if len(items) <= most:
        return items
    step = (len(items) - 1) / (most - 1)
    return [items[round(i * step)] for i in range(most)]
