"""What the attending mixers of a trained model look at, as plain data: how far back, and a map of one row."""

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


def attention_of(model: Any, ids: Tensor) -> list[dict[str, Any]] | None:
    """One entry per layer whose mixer can give its weights; None when no layer can.

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


def maps_of(entry: dict[str, Any]) -> Tensor:
    """The maps of a layer's entry, 0 to 1 (square roots of weights), [heads, tokens, tokens]."""
    values = torch.tensor(list(base64.b64decode(entry["map"])), dtype=torch.float32) / 255
    return values.view(entry["heads"], entry["tokens"], entry["tokens"])
