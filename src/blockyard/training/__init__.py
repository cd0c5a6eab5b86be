"""Training: one loop on plain PyTorch, exact across interruptions, the same on one process or many."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.training.auxiliary import with_auxiliary as with_auxiliary
    from blockyard.training.checkpoint import Checkpoint as Checkpoint
    from blockyard.training.checkpoint import list_checkpoints as list_checkpoints
    from blockyard.training.checkpoint import load_checkpoint as load_checkpoint
    from blockyard.training.config import TrainConfig as TrainConfig
    from blockyard.training.guard import NonFiniteError as NonFiniteError
    from blockyard.training.interrupt import Interrupted as Interrupted
    from blockyard.training.muon import Muon as Muon
    from blockyard.training.optim import Optimizers as Optimizers
    from blockyard.training.schedule import lr_factor as lr_factor
    from blockyard.training.seeding import seeded as seeded
    from blockyard.training.task import Batch as Batch
    from blockyard.training.task import Task as Task
    from blockyard.training.trainer import Trainer as Trainer
else:
    __all__ = exports(
        __name__,
        {
            "auxiliary": "with_auxiliary",
            "checkpoint": "Checkpoint list_checkpoints load_checkpoint",
            "config": "TrainConfig",
            "guard": "NonFiniteError",
            "interrupt": "Interrupted",
            "muon": "Muon",
            "optim": "Optimizers",
            "schedule": "lr_factor",
            "seeding": "seeded",
            "task": "Batch Task",
            "trainer": "Trainer",
        },
    )
