"""A price model's forecasts of windows, as arrays."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn


def predictions(model: nn.Module, windows: Iterator[Tensor]) -> tuple[np.ndarray, np.ndarray | None]:
    """Forecasts of windows in batches, in units of σ20 √h.

    Returns: points [N, H], and quantiles [N, H, levels] (None with head=point), float64.
    """
    device = next(model.parameters()).device
    points, quantiles = [], []
    model.eval()
    with torch.no_grad():
        for x in windows:
            output = model(x.to(device))
            points.append(output.point.double().cpu().numpy())
            if output.quantiles is not None:
                quantiles.append(output.quantiles.double().cpu().numpy())
    return np.concatenate(points), np.concatenate(quantiles) if quantiles else None
