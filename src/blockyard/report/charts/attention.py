"""What attention looks at after training: how far back each head reaches, and maps of one row of text."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from blockyard.report.chart import WIDTH, Chart
from blockyard.report.palette import Palette
from blockyard.report.schema import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

# Legible on white and on dark paper: a picture's pixels cannot take their colour from the page.
_BLUE = (0.22, 0.55, 0.79)
MOST_HEADS, GAP = 8, 3


def attention_pictures(report: Report) -> list[Chart]:
    """Return one figure of reaches for all choices that attend, and one of maps for each."""
    found = {i: layers for i, choice in enumerate(report["choices"]) if (layers := choice.get("attention"))}
    if not found:
        return []
    names = [choice["name"] for choice in report["choices"]]
    return [_reach(report, found), *(_maps(i, names[i], layers) for i, layers in found.items())]


def _reach(report: Report, found: dict[int, list[dict[str, Any]]]) -> Chart:
    context = report["settings"].get("model", {}).get("context")
    depth = 1 + max(entry["layer"] for layers in found.values() for entry in layers)

    def draw(axes: Axes, palette: Palette) -> None:
        width = 0.7 / len(found)
        for place, (i, layers) in enumerate(found.items()):
            look, shift = palette.style(i), (place - (len(found) - 1) / 2) * width
            for entry in layers:
                heads = entry["distance"]
                x = entry["layer"] + 1 + shift
                axes.scatter(
                    [x] * len(heads), heads, s=20, marker=look.marker, color=look.colour, alpha=0.85, linewidths=0
                )
                mean = sum(heads) / len(heads)
                axes.plot([x - 0.4 * width, x + 0.4 * width], [mean, mean], color=look.colour, linewidth=1.6)
        if context:
            axes.axhline((context - 1) / 4, color=palette.soft, linewidth=0.9, dashes=(2, 2))
        axes.set_xticks(range(1, depth + 1))
        axes.set_ylim(0, None)
        axes.grid(False, axis="x")
        axes.set_xlabel("layer")
        axes.set_ylabel("mean distance (tokens)")

    caption = "One mark a head: tokens between a query and what it attends to, on held-out text. Bar: the layer's mean."
    if context:
        caption += " Dashed: attending evenly to all that came before."
    return Chart("attention-reach", "How far back the heads look", caption, draw, group="attention")


def _maps(index: int, name: str, layers: list[dict[str, Any]]) -> Chart:
    tokens, columns = layers[0]["tokens"], min(MOST_HEADS, max(entry["heads"] for entry in layers))
    cell = tokens + GAP

    def draw(axes: Axes, palette: Palette) -> None:
        import numpy as np

        image = np.zeros((cell * len(layers) - GAP, cell * columns - GAP, 4), dtype=np.float32)
        image[..., :3] = _BLUE
        for row, entry in enumerate(layers):
            for column, weights in enumerate(maps_of(entry)[:columns]):
                y, x = row * cell, column * cell
                # A faint ground shows where a map is, also where its weights are small.
                image[y : y + tokens, x : x + tokens, 3] = 0.07 + 0.93 * weights.numpy()
        axes.imshow(image, interpolation="nearest", aspect="equal")
        middle = (tokens - 1) / 2
        axes.set_yticks([row * cell + middle for row in range(len(layers))], [str(e["layer"] + 1) for e in layers])
        axes.set_xticks([column * cell + middle for column in range(columns)], [str(c + 1) for c in range(columns)])
        axes.set_ylabel("layer")
        axes.set_xlabel("head")
        axes.tick_params(length=0)
        axes.grid(False)
        for side in axes.spines.values():
            side.set_visible(False)

    heads = max(entry["heads"] for entry in layers)
    part = f", the first {columns} of {heads} heads" if heads > columns else ""
    caption = (
        f"Who attends to whom in the last {tokens} tokens of a row of held-out text{part}: queries downwards, keys to "
        "the right, the stronger the colour the more (square root of the weight)."
    )
    height = 0.6 + (WIDTH - 0.7) * len(layers) / columns
    return Chart(
        f"attention-{index}",
        f"Attention of {name}",
        caption,
        draw,
        height=min(height, 6.0),
        legend=False,
        group="attention",
    )


def maps_of(entry: dict[str, Any]) -> Tensor:
    """Read the maps of a layer's entry: 0 to 1 (square roots of weights), [heads, tokens, tokens]."""
    import torch

    values = torch.tensor(list(base64.b64decode(entry["map"])), dtype=torch.float32) / 255
    return values.view(entry["heads"], entry["tokens"], entry["tokens"])
