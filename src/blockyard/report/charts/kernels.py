"""What the filtering layers of a choice learnt: impulse responses over the lag, gates over the frequency."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blockyard.report.chart import Chart
from blockyard.report.palette import Palette
from blockyard.report.schema import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def learnt_kernels(report: Report) -> list[Chart]:
    """Return two figures for every choice that has such layers."""
    charts = []
    for number, choice in enumerate(report["choices"]):
        layers = choice.get("kernels")
        if layers:
            charts += [_responses(number, choice["name"], layers), _gates(number, choice["name"], layers)]
    return charts


def _responses(number: int, name: str, layers: list[dict[str, Any]]) -> Chart:
    def draw(axes: Axes, palette: Palette) -> None:
        _curves(axes, palette, layers, "lags", "response")
        axes.set_xscale("symlog", linthresh=1)
        axes.set_yscale("log")
        axes.set_ylim(bottom=1e-3)
        axes.set_xlabel("lag (tokens)")
        axes.set_ylabel("|impulse response|, largest = 1")

    spans = ", ".join(f"layer {layer['layer'] + 1}: {layer['span'][1]:g}" for layer in layers)
    caption = (
        "Median over the kernels of a layer, for an average input. "
        f"Lag that holds 95 % of the energy (median): {spans}."
    )
    return Chart(f"kernels-{number}", f"Kernels of {name}", caption, draw, legend=False, group="kernels")


def _gates(number: int, name: str, layers: list[dict[str, Any]]) -> Chart:
    def draw(axes: Axes, palette: Palette) -> None:
        _curves(axes, palette, layers, "frequencies", "gate")
        axes.set_xscale("symlog", linthresh=1e-3)
        axes.set_ylim(0, 1.05)
        axes.set_xlabel("frequency (cycles per token)")
        axes.set_ylabel("|gate|, largest = 1")

    caption = "Median over the kernels of a layer; low frequencies, on the left, are slow changes over many tokens."
    return Chart(f"gates-{number}", f"Gates of {name}", caption, draw, legend=False, group="kernels")


def _curves(axes: Axes, palette: Palette, layers: list[dict[str, Any]], x: str, y: str) -> None:
    for order, layer in enumerate(layers):
        look = palette.style(order)
        axes.plot(
            layer[x],
            [quartiles[1] for quartiles in layer[y]],
            color=look.colour,
            dashes=look.dashes or (None, None),
            label=f"layer {layer['layer'] + 1}",
        )
    axes.legend(frameon=False, fontsize=8, labelcolor=palette.ink)
