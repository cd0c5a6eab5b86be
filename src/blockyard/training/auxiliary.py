"""What blocks return beside their output, as part of a task's loss, of its log, and as a line of metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from blockyard.training.config import TrainConfig


def with_auxiliary(
    loss: Tensor, aux: dict[str, Any] | None, config: TrainConfig, name: str = "task_loss"
) -> tuple[Tensor, dict[str, Tensor]]:
    """Add the blocks' own losses, weighted, and gather what is to be logged.

    Args:
        loss: the task's loss, a scalar.
        aux: a model's `aux`: `{"losses": {name: scalar}, "stats": {"layers.0": {name: tensor}}}`, or None.
        config: the factors on auxiliary losses.
        name: under which the task's own loss is logged when others are added to it.

    Returns: the loss to differentiate, and detached: the losses apart, and the blocks' statistics.
    """
    if not aux:
        return loss, {}
    stats: dict[str, Tensor] = {}
    if aux.get("losses"):
        # Logged apart: with a router's losses added the curve of a mixture could not be laid beside a dense model's.
        stats[name] = loss.detach()
        for key, value in aux["losses"].items():
            stats[f"loss/{key}"] = value.detach()
            # Two weights: a z-loss only bounds logits and is wanted at a tenth of the balance's (ST-MoE).
            loss = loss + (config.z_loss_weight if key == "z" else config.aux_loss_weight) * value
    for layer, found in aux.get("stats", {}).items():
        stats |= {f"{layer}/{key}": v.detach() for key, v in found.items() if isinstance(v, Tensor)}
    return loss, stats


LOAD = "load"


def statistics_row(stats: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the statistics of a step as plain data.

    Returns: scalars by name; a layer's `load` as the experts' shares of the tokens, 1 / n each when all are equally
    busy; `max_load`, where there are experts: the largest share times n, in the layer where that is largest.
    """
    row: dict[str, Any] = {}
    for name, value in stats.items():
        if not value.ndim:
            row[name] = float(value)
        elif name.rpartition("/")[2] == LOAD:
            # Counts of the whole step, all ranks and passes: a share of one pass of few tokens would be noise.
            shares = (value / value.sum().clamp_min(1)).tolist()
            row[name] = [round(share, 5) for share in shares]
            row["max_load"] = max(row.get("max_load", 0.0), round(max(shares) * len(shares), 4))
        else:
            row[name] = value.flatten().tolist()
    return row
