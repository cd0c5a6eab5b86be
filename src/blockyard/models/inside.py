"""What the mixers of a trained model do, as plain data: where attention looks, which frequencies filters pass."""

from __future__ import annotations

import base64
from typing import Any

import torch
from torch import Tensor

from blockyard.registry.register import implementation

# Tokens of a row whose map is kept: enough to see stripes and diagonals, small in a report.
MAP_TOKENS = 32
# Longer rows are cut: weights of every pair of tokens are held at once.
MOST_TOKENS = 1024
# Places at which the curves of filters are kept.
POINTS = 40


def attention_of(model: Any, ids: Tensor) -> list[dict[str, Any]] | None:
    """Return one entry per layer whose mixer can give its weights; None when no layer can.

    Each has `layer`; `distance`, for every head the mean number of tokens between a query and what it attends to;
    `heads` and `tokens`; and `map`, base64 of uint8 [heads, tokens, tokens]: 255 times the square root of the weights
    within the last `tokens` positions of the first row.

    Args:
        model: a language model in eval mode.
        ids: token ids [B, T].
    """
    inputs: dict[int, Tensor] = {}
    handles = [
        layer.register_forward_pre_hook(lambda module, given, number=number: inputs.__setitem__(number, given[0]))
        for number, layer in enumerate(model.layers)
    ]
    try:
        with torch.no_grad():
            model(ids[:, :MOST_TOKENS])
            found = [
                _layer(number, model.layers[number], x)
                for number, x in inputs.items()
                if implementation("attn", model.config.layers[number].attn).traits.weights
            ]
    finally:
        for handle in handles:
            handle.remove()
    return found or None


def _layer(number: int, layer: Any, x: Tensor) -> dict[str, Any]:
    _, weights = layer.attn(layer.ln1(x) if layer.pre else x, return_weights=True)
    weights = weights.abs().double()
    places = torch.arange(weights.shape[-1], dtype=torch.float64, device=weights.device)
    apart = (places[:, None] - places).abs()
    distance = (weights * apart).sum(-1).mean((0, 2))
    tokens = min(MAP_TOKENS, weights.shape[-1])
    drawn = (255 * weights[0, :, -tokens:, -tokens:].clamp(0, 1).sqrt()).round().to(torch.uint8)
    return {
        "layer": number,
        "distance": [float(f"{value:.4g}") for value in distance.tolist()],
        "heads": weights.shape[1],
        "tokens": tokens,
        "map": base64.b64encode(bytes(drawn.cpu().flatten().tolist())).decode(),
    }


def kernels_of(model: Any) -> list[dict[str, Any]] | None:
    """Return one entry per layer whose mixer has `kernels()`, for the gate of an average input; None when no layer has.

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
    """Return curves [n, m] at places [m] as root mean squares in bins that widen geometrically; the first hold one
    place."""
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
    """Return quartiles, [n, m] -> m times [lower quartile, median, upper quartile]."""
    levels = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    return [[float(f"{value:.4g}") for value in column] for column in curves.quantile(levels, dim=0).T.tolist()]
