"""Drawings of forecasts into given axes: fans, calibration, skill over time; and whole figures of them as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from blockyard.errors import InputError, require
from blockyard.files import writing
from blockyard.report.fonts import save_figure
from blockyard.report.palette import LIGHT, Palette

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

# Central intervals of a fan and how dark they are.
BANDS = ((0.025, 0.975, 0.12), (0.05, 0.95, 0.14), (0.1, 0.9, 0.18), (0.25, 0.75, 0.26))


def draw_fan(axes: Axes, fan: Mapping[str, Any], levels: Sequence[float], palette: Palette, colour: str) -> None:
    """Draw history, the forecast's intervals, its median, and what came.

    Args:
        axes: matplotlib's.
        fan: as `summary` makes them.
        levels: of its quantiles.
        palette: of the page.
        colour: of the forecast.
    """
    history, quantiles = np.array(fan["history"]), np.array(fan["quantiles"])
    # The fan opens at the origin, where all quantiles are the last price.
    steps = np.array([0, *fan["horizons"]])
    paths = np.concatenate([np.full((1, len(levels)), history[-1]), quantiles])
    for low, high, alpha in BANDS:
        places = [_place(levels, level) for level in (low, high)]
        if places[0] is not None and places[1] is not None:
            axes.fill_between(steps, paths[:, places[0]], paths[:, places[1]], color=colour, alpha=alpha, linewidth=0)
    middle = _place(levels, 0.5)
    if middle is not None:
        axes.plot(steps, paths[:, middle], color=colour, linewidth=1.8)
    axes.plot(np.arange(1 - len(history), 1), history, color=palette.ink, linewidth=1.2)
    if fan.get("actual"):
        axes.plot(
            np.arange(len(fan["actual"])), fan["actual"], color=palette.ink, linewidth=1.2, linestyle=(0, (2, 1.5))
        )
    axes.axvline(0, color=palette.soft, linewidth=0.8)
    axes.set_xlabel(f"steps from {fan['origin']}")
    axes.set_ylabel(f"price of {fan['unique_id']}")


def draw_calibration(axes: Axes, palette: Palette) -> None:
    """Draw the line on which every calibrated forecast lies, and the axes' names."""
    axes.plot([0, 1], [0, 1], color=palette.soft, linewidth=0.9, linestyle=(0, (1, 2)))
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("forecast level τ")
    axes.set_ylabel("outcomes below the τ-quantile")


def draw_over_time(
    axes: Axes, curves: Sequence[Mapping[str, Any]], lines: Sequence[Mapping[str, Any]], palette: Palette
) -> None:
    """Draw skill accumulated over the test span.

    Args:
        axes: matplotlib's.
        curves: as `summary` makes them.
        lines: keywords of each curve's line.
        palette: of the page.
    """
    axes.axhline(0, color=palette.soft, linewidth=0.9, linestyle=(0, (1, 2)))
    for curve, line in zip(curves, lines):
        axes.plot(np.linspace(0, 1, len(curve["skill"])), curve["skill"], **line)
    if curves:
        ds = curves[0]["ds"]
        places = np.linspace(0, len(ds) - 1, 4).astype(int)
        axes.set_xticks(places / max(len(ds) - 1, 1), [str(ds[p])[:7] for p in places])
    axes.set_ylabel("accumulated pinball skill")


def draw_tenths(axes: Axes, shares: Sequence[Mapping[str, float] | None], palette: Palette, colour: str) -> None:
    """Draw a PIT histogram: the share of outcomes in each tenth of the forecast, with intervals, and the line of a
    tenth.

    Args:
        axes: matplotlib's.
        shares: ten scores, as `evaluate` makes them.
        palette: of the page.
        colour: of the forecast.
    """
    known = [one for one in shares if one is not None]
    middles = (np.arange(len(known)) + 0.5) / len(known)
    values = np.array([one["value"] for one in known])
    axes.bar(middles, values, width=0.92 / len(known), color=colour, alpha=0.55, linewidth=0)
    ends = np.array([[one["value"] - one["low"], one["high"] - one["value"]] for one in known]).T
    axes.errorbar(middles, values, yerr=np.maximum(ends, 0), fmt="none", ecolor=palette.ink, elinewidth=0.9, capsize=2)
    axes.axhline(1 / len(known), color=palette.ink, linewidth=1.0, linestyle=(0, (4, 2)))
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("where the outcome lay in the forecast (PIT)")
    axes.set_ylabel("share of outcomes")


def _place(levels: Sequence[float], level: float) -> int | None:
    near = [k for k, known in enumerate(levels) if abs(known - level) < 1e-9]
    return near[0] if near else None


def save_summary_plots(summary: Mapping[str, Any], main: str, folder: Path) -> list[Path]:
    """Return fan.png, calibration.png, skill.png and pit.png of a summary.

    Args:
        summary: from `summarise`.
        main: the forecast whose fan is drawn, and which is drawn in colour.
        folder: where to.
    """
    curves = summary["curves"]
    shown = [name for name in curves if name == main or name in ("EWMA(0.94)", "GARCH-t", "HistVol20")]
    shown.sort(key=lambda name: name != main)
    looks = {
        name: {
            "color": LIGHT.style(i).colour,
            "dashes": LIGHT.style(i).dashes or (None, None),
            "label": name,
            "linewidth": 2.0 if name == main else 1.3,
        }
        for i, name in enumerate(shown)
    }
    files = []
    if main in summary["fans"]:
        figure, axes = _figure(1)
        fan = summary["fans"][main]
        draw_fan(axes[0], fan, summary["levels"], LIGHT, LIGHT.style(0).colour)
        files.append(_save(figure, folder / "fan.png"))
    horizons = list(next(iter(curves.values()), {}))
    if horizons:
        figure, axes = _figure(len(horizons))
        for place, h in zip(axes, horizons):
            draw_calibration(place, LIGHT)
            for name in shown:
                place.plot(curves[name][h]["levels"], curves[name][h]["observed"], **looks[name])
            place.set_title(f"h = {h}")
        axes[0].legend(frameon=False, fontsize=8)
        files.append(_save(figure, folder / "calibration.png"))
        figure, axes = _figure(len(horizons))
        for place, h in zip(axes, horizons):
            draw_over_time(place, [curves[name][h] for name in shown], [looks[name] for name in shown], LIGHT)
            place.set_title(f"h = {h}")
        axes[0].legend(frameon=False, fontsize=8)
        files.append(_save(figure, folder / "skill.png"))
        pit = {
            h: summary.get("pit", {}).get(main, {})[summary["horizons"].index(int(h))]
            for h in horizons
            if summary.get("pit", {}).get(main)
        }
        if pit and None not in pit.values():
            figure, axes = _figure(len(pit))
            for place, (h, shares) in zip(axes, pit.items()):
                draw_tenths(place, shares, LIGHT, LIGHT.style(0).colour)
                place.set_title(f"{main}, h = {h}")
            files.append(_save(figure, folder / "pit.png"))
    return files


def save_fans(
    frame: pd.DataFrame, histories: Mapping[str, Sequence[float]], levels: Sequence[float], out: Path, most: int = 6
) -> Path:
    """Return the fans of a tidy frame of forecasts, one panel per asset (the first `most`).

    Args:
        frame: from `future_table`.
        histories: the prices up to the origin, by asset.
        levels: of the quantiles.
        out: a PNG file.
        most: panels.
    """
    names = list(dict.fromkeys(frame["unique_id"]))[:most]
    figure, axes = _figure(len(names))
    for place, name in zip(axes, names):
        mine = frame[frame["unique_id"] == name]
        fan = {
            "unique_id": name,
            "origin": str(mine["cutoff"].iloc[0]).replace(" 00:00:00", ""),
            "history": list(histories[name]),
            "horizons": mine["horizon"].tolist(),
            "quantiles": mine[[f"q{level:g}" for level in levels]].to_numpy(),
        }
        draw_fan(place, fan, levels, LIGHT, LIGHT.style(0).colour)
    return _save(figure, out)


def _figure(panels: int) -> tuple[Any, list[Any]]:
    figures = require("matplotlib.figure", extra="report")
    columns = min(panels, 2)
    rows = -(-panels // columns)
    figure = figures.Figure(figsize=(5.5 * columns, 3.6 * rows), layout="constrained")
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(panels)]
    for place in axes:
        for side in ("top", "right"):
            place.spines[side].set_visible(False)
        place.grid(True, color=LIGHT.grid, linewidth=0.7)
        place.set_axisbelow(True)
    return figure, axes


def _save(figure: Any, path: Path) -> Path:
    kind, known = path.suffix.lower().removeprefix("."), figure.canvas.get_supported_filetypes()
    if kind not in known:
        raise InputError(f"cannot draw {path}: its name should end in one of .{', .'.join(sorted(known))}")
    with writing(path) as file:
        save_figure(figure, file, format=kind, dpi=140, facecolor=LIGHT.paper)
    return path
