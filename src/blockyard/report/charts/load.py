"""How busy the experts of a mixture are: every expert's share of the tokens, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from blockyard.report.chart import Chart
from blockyard.report.palette import Palette
from blockyard.report.schema import Choice, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def expert_loads(report: Report) -> list[Chart]:
    """Return a figure for every choice whose runs tell of experts."""
    found = []
    for index, choice in enumerate(report["choices"]):
        loads = mean_loads(choice)
        if loads:
            worst = max(max(shares) * len(shares) for shares in loads.values())
            caption = (
                "Share of the tokens that each expert got in the last tenth of training, divided by an equal share: 1 "
                f"is balanced, 0 an idle expert. One line per layer, mean over {_runs(choice)}. Largest: {worst:.2f}."
            )
            title = f"How busy the experts are: {choice['name']}"
            draw = _drawer(loads, index)
            found.append(Chart(f"expert-load-{index}", title, caption, draw, legend=False, group="experts"))
    return found


def mean_loads(choice: Choice) -> dict[str, list[float]]:
    """Return shares by layer, averaged over the runs that have them."""
    runs = [run["load"] for run in choice["runs"] if run.get("load")]
    if not runs:
        return {}
    return {layer: [sum(column) / len(runs) for column in zip(*(run[layer] for run in runs))] for layer in runs[0]}


def _runs(choice: Choice) -> str:
    n = sum(bool(run.get("load")) for run in choice["runs"])
    return f"{n} runs" if n > 1 else "one run"


def _drawer(loads: dict[str, list[float]], index: int) -> Callable[[Axes, Palette], None]:
    def draw(axes: Axes, palette: Palette) -> None:
        look = palette.style(index)
        axes.axhline(1.0, color=palette.soft, linewidth=1, dashes=(4, 2), zorder=1)
        for number, shares in enumerate(loads.values()):
            ratios = [share * len(shares) for share in shares]
            # Later layers are drawn fainter; their order is that of the model.
            strength = 1.0 - 0.65 * number / max(1, len(loads) - 1)
            experts = range(1, len(ratios) + 1)
            axes.plot(
                experts,
                ratios,
                color=look.colour,
                alpha=strength,
                marker=look.marker,
                markersize=5,
                linewidth=1,
                zorder=2,
            )
        axes.set_ylim(bottom=0)
        axes.set_xlabel("expert")
        axes.set_ylabel("share / equal share")
        axes.locator_params(axis="x", integer=True)

    return draw
