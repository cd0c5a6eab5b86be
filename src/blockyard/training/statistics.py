"""What blocks report of a step, as a line of metrics: scalars as they are, experts' loads as shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

LOAD = "load"


def statistics_row(stats: Mapping[str, Tensor]) -> dict[str, Any]:
    """The statistics of a step as plain data.

    Returns: scalars by name; a layer's `load` as the experts' shares of the tokens, 1 / n each when all are equally
    busy; `max_load`, where there are experts: the largest share times n, in the layer where that is largest.
    """
    row: dict[str, Any] = {}
    for name, value in stats.items():
        if not value.ndim:
            row[name] = float(value)
        elif name.rpartition("/")[2] == LOAD:
            shares = (value / value.sum().clamp_min(1)).tolist()
            row[name] = [round(share, 5) for share in shares]
            row["max_load"] = max(row.get("max_load", 0.0), round(max(shares) * len(shares), 4))
        else:
            row[name] = value.flatten().tolist()
    return row
