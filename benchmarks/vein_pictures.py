"""Pictures of vein blocks: how far tokens lie from each layer's vein while it trains, and which forms pay.

    python benchmarks/vein_pictures.py RUN PICTURE.png
    python benchmarks/vein_pictures.py --search RESULTS.json PICTURE.png

The first reads metrics.jsonl of a run that was trained with `--vft.metrics true`; the second what
benchmarks/vein_search.py wrote.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from blockyard.compare.results import read_metrics
from blockyard.errors import InputError, require
from blockyard.files import parse_json, writing
from blockyard.report.palette import LIGHT
from blockyard.report.render import drawing_style, dress

# What a block reports (see `VFTBlock.forward`), and how a panel names it.
PANELS = {
    "eps_mean": "reconstruction error, mean over tokens",
    "effective_rank": "effective rank of the vein",
    "eps_frac_over_tau": "share of tokens over tau",
}
Curves = dict[str, dict[str, tuple[list[float], list[float]]]]
Draw = Callable[[Any], None]

STANDARD = "standard"


def vein_curves(run: Path) -> Curves:
    """What the vein blocks of a run reported: panel -> layer -> (steps, values).

    Args:
        run: a run folder.

    Raises:
        InputError: when there are no metrics, or no vein block reported any.
    """
    found: Curves = {}
    for row in _metrics(run):
        for key, value in row.items():
            layer, _, name = key.rpartition("/")
            if layer and name in PANELS and value is not None:
                steps, values = found.setdefault(name, {}).setdefault(layer, ([], []))
                steps.append(row["step"])
                values.append(value)
    if not found:
        raise InputError(f"no vein block of {run} reported anything; train with --vft.metrics true")
    return found


def _metrics(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise InputError(f"{run} holds no metrics.jsonl; give the folder of a run")
    return read_metrics(run)


def scheduled(run: Path, name: str) -> list[tuple[int, float]]:
    """(step, value) where a scheduled value of a run, `vein_tau` or `vein_rank`, starts and where it changes."""
    found: list[tuple[int, float]] = []
    for row in _metrics(run):
        if name in row and (not found or found[-1][1] != row[name]):
            found.append((row["step"], row[name]))
    return found


def draw_run(run: Path, picture: Path) -> Path:
    """Reconstruction error, effective rank and share over tau of every layer over the steps, as PNG.

    What `--train.vein_taus` and `--train.vein_ranks` scheduled is written where it holds.
    """
    curves = vein_curves(run)
    notes = {
        "eps_frac_over_tau": ("τ", scheduled(run, "vein_tau")),
        "effective_rank": ("k", scheduled(run, "vein_rank")),
    }
    layers = sorted({layer for panel in curves.values() for layer in panel}, key=_natural)

    def panel(name: str) -> Draw:
        def draw(axes: Any) -> None:
            for i, layer in enumerate(layers):
                if layer in curves[name]:
                    steps, values = curves[name][layer]
                    look = LIGHT.style(i)
                    axes.plot(steps, values, color=look.colour, dashes=look.dashes or (None, None), label=layer)
            axes.set_xlabel("step")
            # Above the panel: along its side the longest name would not fit.
            axes.set_title(PANELS[name], fontsize="medium", color=LIGHT.ink, loc="left")
            if name == "eps_frac_over_tau":
                axes.set_ylim(-0.03, 1.12)
                axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
            letter, changes = notes.get(name, ("", []))
            for step, value in changes:
                axes.axvline(step, color=LIGHT.soft, linewidth=0.8)
                where = axes.get_xaxis_transform()
                axes.text(
                    step, 0.98, f" {letter} = {value:g}", transform=where, va="top", color=LIGHT.soft, fontsize="small"
                )

        return draw

    return _save([panel(name) for name in PANELS if name in curves], picture)


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that none with at most their cost has a lower loss than, by cost.

    Args:
        points: (cost, loss).
    """
    kept: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: points[i]):
        if not kept or points[i][1] < points[kept[-1]][1]:
            kept.append(i)
    return kept


def search_points(results: Path) -> list[dict[str, Any]]:
    """One point per choice of a search: its mean loss at equal CPU-seconds over seeds, and what it costs.

    Raises:
        InputError: when the file is not one of a search with results.
    """
    try:
        rows = parse_json(results.read_text(encoding="utf-8"))["rows"]
        by_name: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            if row["part"] in ("field", "finalists, seconds"):
                by_name.setdefault(row["name"], []).append(row)
        points = [
            {
                "name": name,
                "loss": statistics.fmean(row["val_loss"] for row in own),
                "seeds": len(own),
                "parameters": own[0]["block_parameters"],
                "cache": own[0]["cache_bytes"],
                "step": own[0]["step_seconds"][0],
            }
            for name, own in by_name.items()
        ]
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputError(f"{results} is not a result of benchmarks/vein_search.py: {error!r}") from error
    if not points:
        raise InputError(f"{results} holds no finished run yet")
    return points


def draw_search(results: Path, picture: Path) -> Path:
    """Loss at equal CPU-seconds over parameters, cache bytes and time per step, with the pareto front, as PNG."""
    points = search_points(results)
    panels = {
        "parameters": "parameters of the blocks (thousands)",
        "cache": "cache bytes per token",
        "step": "CPU milliseconds per step",
    }
    factors = {"parameters": 1e-3, "cache": 1.0, "step": 1e3}

    def panel(key: str) -> Draw:
        def draw(axes: Any) -> None:
            for i, (word, chosen) in enumerate(_families(points).items()):
                look = LIGHT.style(i)
                xs = [point[key] * factors[key] for point in chosen]
                losses = [point["loss"] for point in chosen]
                axes.plot(xs, losses, look.marker, color=look.colour, markersize=5, label=word)
            front = [points[i] for i in pareto([(point[key], point["loss"]) for point in points])]
            xs = [point[key] * factors[key] for point in front]
            axes.plot(xs, [point["loss"] for point in front], color=LIGHT.soft, linewidth=1, label="pareto front")
            axes.set_xscale("log")
            ticker = require("matplotlib.ticker", extra="report")
            axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
            axes.xaxis.set_minor_formatter(ticker.NullFormatter())
            axes.set_xlabel(panels[key])
            axes.set_ylabel("validation loss (nats per byte)")

        return draw

    return _save([panel(key) for key in panels], picture)


def _families(points: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    families: dict[str, list[dict[str, Any]]] = {"standard blocks": [], "vein blocks": []}
    for point in points:
        families["standard blocks" if point["name"].startswith(STANDARD) else "vein blocks"].append(point)
    return families


def _save(panels: list[Draw], picture: Path) -> Path:
    """Panels side by side under one legend."""
    figures = require("matplotlib.figure", extra="report")
    with drawing_style():
        figure = figures.Figure(figsize=(3.5 * len(panels), 3.2), layout="constrained")
        all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, draw in zip(all_axes, panels):
            dress(axes, LIGHT)
            draw(axes)
        handles, labels = all_axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False, labelcolor=LIGHT.ink)
        with writing(picture) as file:
            figure.savefig(file, format="png", dpi=110, facecolor=LIGHT.paper)
    return picture


def _natural(name: str) -> list[Any]:
    """Layer 10 after layer 9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def main(words: Sequence[str] | None = None) -> int:
    """Draw one picture; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="run folder, or with --search the JSON of a search")
    parser.add_argument("picture", type=Path, help="PNG file to write")
    parser.add_argument("--search", action="store_true", help="draw a search instead of a run")
    given = parser.parse_args(words)
    try:
        print((draw_search if given.search else draw_run)(given.source, given.picture))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
