"""What filtering mixers have learnt, as plain data: how far their kernels reach and which frequencies they pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

POINTS = 40


def kernels_of(model: Any) -> list[dict[str, Any]] | None:
    """One entry per layer whose mixer has `kernels()`, for the gate of an average input; None when no layer has.

    Each has `layer`, `span` (quartiles over the kernels of the lag that holds 95 % of the energy), `lags` and
    `response` (quartiles of the absolute impulse response, each kernel scaled to a largest value of 1), `frequencies`
    (in cycles per token) and `gate` (quartiles of the magnitude of the transfer function, scaled alike).
    """
    found = []
    for number, layer in enumerate(model.layers):
        mixer: Any = getattr(layer, "attn", None)
        if not hasattr(mixer, "kernels"):
            continue
        kernels, lags = mixer.kernels()
        kernels = kernels.flatten(0, -2).double()
        transfer = torch.fft.rfft(kernels, 2 * kernels.shape[-1]).abs()
        frequencies = torch.linspace(0, 0.5, transfer.shape[-1], dtype=torch.float64)
        places, response = _binned(lags.abs().double(), _scaled(kernels.abs()))
        passed, gate = _binned(frequencies * 2 * kernels.shape[-1], _scaled(transfer))
        found.append(
            {
                "layer": number,
                "span": _quartiles(mixer.kernel_span().flatten().double()[:, None])[0],
                "lags": places,
                "response": _quartiles(response),
                "frequencies": [f / (2 * kernels.shape[-1]) for f in passed],
                "gate": _quartiles(gate),
            }
        )
    return found or None


def _scaled(curves: Tensor) -> Tensor:
    return curves / curves.amax(-1, keepdim=True).clamp(min=1e-300)


def _binned(places: Tensor, curves: Tensor) -> tuple[list[float], Tensor]:
    """Curves [n, m] at places [m] as root mean squares in bins that widen geometrically; the first hold one place."""
    edges = (
        torch.logspace(0, float(torch.log10(places.max() + 2)), POINTS + 1, dtype=torch.float64).round().unique() - 1
    )
    index = torch.bucketize(places, edges, right=True) - 1
    centres, found = [], []
    for bin_ in range(len(edges) - 1):
        inside = index == bin_
        if inside.any():
            centres.append(float(places[inside].mean()))
            found.append(curves[:, inside].square().mean(-1).sqrt())
    return centres, torch.stack(found, dim=-1)


def _quartiles(curves: Tensor) -> list[list[float]]:
    """[n, m] -> m times [lower quartile, median, upper quartile]."""
    levels = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    return [[float(f"{value:.4g}") for value in column] for column in curves.quantile(levels, dim=0).T.tolist()]
