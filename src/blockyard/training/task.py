"""What the loop asks of a task: a model, batches that are pure functions of the step, a loss, an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from blockyard.errors import InputError

Batch = dict[str, Tensor]


class Task(Protocol):
    """A model and the data that it learns from.

    Attributes:
        model: what is trained.
        tokens_per_step: tokens (or other units of input) of one global batch.
        flops_per_step: training FLOPs of one global batch, by formula (three times the forward pass).
        fingerprint: what identifies the data (source, sha256, sizes), written into the run folder.

    One whose batches have the model compute with other shapes at every step says why in `varies`.
    """

    model: nn.Module
    tokens_per_step: int
    flops_per_step: int
    fingerprint: dict[str, Any]

    def batch(self, step: int, rows: slice) -> Batch:
        """Return the given rows of the global batch number `step`: a pure function of the seed and the step."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean loss over the rows (a scalar to differentiate) and statistics, detached.

        Scalars are logged as the last pass gave them. Vectors are counts: they are summed over the passes and ranks of
        a step, and `MODULE/NAME` of a module that has `after_step` is handed to it once the step is made.

        `model` is the task's model or a wrapper around it (DDP): call this one.
        """
        ...

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return validation figures, `val_loss` among them. The model is in eval mode and gradients are off."""
        ...

    def save_assets(self, folder: Path) -> None:
        """Write what using the model takes beside its weights (a tokenizer, say) into the run folder."""
        ...


MEMBERS = (
    "model",
    "tokens_per_step",
    "flops_per_step",
    "fingerprint",
    "batch",
    "loss",
    "evaluate",
    "save_assets",
)


def check_task(task: Task) -> None:
    """Raise InputError unless the task has all that the loop asks for: told before anything is begun."""
    # By name and not by isinstance: a task of a user's own need not inherit from anything.
    lacking = [name for name in MEMBERS if not hasattr(task, name)]
    if lacking:
        raise InputError(f"{type(task).__name__} lacks {', '.join(lacking)}: a Task has {', '.join(MEMBERS)}")
