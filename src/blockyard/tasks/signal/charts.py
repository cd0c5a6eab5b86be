"""Drawings of signal models into given axes: accuracy over SNR, confusion, calibration; and whole figures as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockyard.errors import require
from blockyard.files import writing
from blockyard.report.fonts import save_figure
from blockyard.report.palette import LIGHT, Palette


@dataclass(frozen=True)
class Curve:
    """Accuracy over SNR of one classifier.

    Args:
        name: its label; "" when a key elsewhere names it.
        snr: dB.
        accuracy: shares.
        look: number of its colour and mark; None draws a dotted line of ink, for a bound.
    """

    name: str
    snr: Sequence[float]
    accuracy: Sequence[float]
    look: int | None


def draw_accuracy(axes: Any, palette: Palette, curves: Sequence[Curve], chance: float) -> None:
    """Draw right decisions over the SNR, and a thin line at what guessing gives."""
    axes.axhline(100 * chance, color=palette.grid, linewidth=0.8)
    for curve in curves:
        values = [100 * value for value in curve.accuracy]
        if curve.look is None:
            axes.plot(curve.snr, values, color=palette.ink, linewidth=1.0, dashes=(1, 1.5))
            middle = len(values) // 2
            axes.annotate(
                curve.name, (curve.snr[middle], values[middle]),
                xytext=(-6, 4), textcoords="offset points", ha="right", fontsize=8, color=palette.ink,
            )  # fmt: skip
            continue
        look = palette.style(curve.look)
        axes.plot(
            curve.snr, values, color=look.colour, linewidth=1.7, dashes=look.dashes or (None, None),
            marker=look.marker, markersize=4.5, **({"label": curve.name} if curve.name else {}),
        )  # fmt: skip
    axes.set_xlabel("SNR, dB (Es/N0)")
    axes.set_ylabel("right decisions (%)")
    axes.set_ylim(0, 102)


def draw_confusion(axes: Any, palette: Palette, classes: Sequence[str], shares: Sequence[Sequence[float]]) -> None:
    """Draw a square for every pair of classes, its area the share of the row; rows are what was sent."""
    count = len(classes)
    for row, values in enumerate(shares):
        for column, value in enumerate(values):
            side = 0.96 * value**0.5
            axes.add_patch(_square(column, row, side, palette.style(0 if row == column else 1).colour))
            if value >= 0.005:
                axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=7, color=palette.ink)
    axes.set_xticks(range(count), classes, rotation=45, ha="right", fontsize=7)
    axes.set_yticks(range(count), classes, fontsize=7)
    axes.set_xlim(-0.5, count - 0.5)
    axes.set_ylim(count - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.grid(False)


def _square(x: float, y: float, side: float, colour: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - side / 2, y - side / 2), side, side, facecolor=colour, alpha=0.45, linewidth=0)


def draw_calibration(axes: Any, palette: Palette, curves: Sequence[tuple[str, int, Mapping[str, Any]]]) -> None:
    """Draw accuracy over confidence, the diagonal being what it should be.

    Args:
        axes: matplotlib's.
        palette: of the page.
        curves: label, number of the look, and a curve of `calibration_curve`; marks are as large as the bin's share.
    """
    axes.plot([0, 1], [0, 1], color=palette.soft, linewidth=0.9, linestyle=(0, (1, 2)))
    for label, number, curve in curves:
        look = palette.style(number)
        axes.plot(
            curve["confidence"], curve["accuracy"], color=look.colour, linewidth=1.5,
            dashes=look.dashes or (None, None), **({"label": label} if label else {}),
        )  # fmt: skip
        sizes = [8 + 160 * share for share in curve["share"]]
        axes.scatter(curve["confidence"], curve["accuracy"], s=sizes, color=look.colour, marker=look.marker, alpha=0.7)
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("probability of the answer")
    axes.set_ylabel("share of such answers that are right")


def telling(accuracy: Sequence[float]) -> int:
    """Return the place at which mistakes say most: where the accuracy is nearest to three quarters."""
    return min(range(len(accuracy)), key=lambda i: abs(accuracy[i] - 0.75))


def save_pictures(found: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write accuracy.png, confusion.png and calibration.png, as far as the figures go.

    Args:
        found: as `finish.evaluate` gives it.
        folder: where to.
    """
    files, classes = [], found["classes"]
    if "snr" in found:
        curves = [Curve("model", found["snr"], found["accuracy"], 0)]
        if "baseline" in found:
            curves.append(Curve(found["baseline"]["name"], found["snr"], found["baseline"]["accuracy"], 1))
        if "bound" in found:
            curves.append(Curve("maximum likelihood", found["snr"], found["bound"]["accuracy"], None))
        figure, axes = _figure()
        draw_accuracy(axes, LIGHT, curves, 1 / len(classes))
        axes.legend(frameon=False, fontsize=8)
        files.append(_save(figure, folder / "accuracy.png"))
    if "confusion" in found:
        figure, axes = _figure(size=max(3.6, 0.42 * len(classes) + 1))
        where = "all" if "snr" not in found else f"{found['snr'][telling(found['accuracy'])]:g}"
        draw_confusion(axes, LIGHT, classes, found["confusion"][where])
        at = "" if where == "all" else f" at {where} dB"
        axes.set_title(f"sent (rows), taken for (columns), %{at}", fontsize=9)
        files.append(_save(figure, folder / "confusion.png"))
    if "calibration" in found:
        figure, axes = _figure()
        curves_of = found["calibration"]
        after = curves_of["calibrated"]
        draw_calibration(axes, LIGHT, [
            (f"as trained, error {curves_of['raw']['ece']:.3f}", 1, curves_of["raw"]),
            (f"calibrated, error {after['ece']:.3f}", 0, after),
        ])  # fmt: skip
        axes.legend(frameon=False, fontsize=8)
        files.append(_save(figure, folder / "calibration.png"))
    return files


def _figure(size: float = 3.6) -> tuple[Any, Any]:
    figures = require("matplotlib.figure", extra="report")
    figure = figures.Figure(figsize=(max(5.5, size), size), layout="constrained")
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(True, color=LIGHT.grid, linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def _save(figure: Any, path: Path) -> Path:
    with writing(path) as file:
        save_figure(figure, file, format="png", dpi=140, facecolor=LIGHT.paper)
    return path
