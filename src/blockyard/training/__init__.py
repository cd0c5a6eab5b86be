"""Training: one loop on plain PyTorch, exact across interruptions, the same on one process or many.

    batch = f(seed, step);  random state = f(seed, step, rank);  decisions (precision, compilation) made once, then kept

So the state of a run is its weights, its optimizer and its step, and a run that is killed at any moment and resumed
ends with the same numbers, bit for bit, on the same processor. The loop knows a `Task`: a model, batches, a loss.

Where to read, in this order:

    task.py          what the loop asks of a task; auxiliary.py adds the blocks' own losses to it
    engine.py        one optimizer step, without files or clocks
    trainer.py       a run: steps, metrics, evaluations, checkpoints; clock.py: what it has spent
    config.py        TrainConfig: the options of the group `train`, the loop's own and those that systems add (with
                     rates, decays and hooks, see protocol/training.py)
    optim.py         AdamW and Muon (muon.py) by what the modules say of their parameters; lr_factor, the schedules
    decisions.py     what is decided by looking at the machine: precision.py, compilation.py (whether it pays),
                     compiling.py (when a run does it)
    folder.py        the run folder, and what must be the same to go on in it; checkpoint.py: folders that appear whole
                     or not at all, without pickles
    loggers.py       where figures go beside metrics.jsonl: TensorBoard, and what plug-ins register
    distributed.py   several ranks as one run, by DDP or FSDP2, and parts and wholes of their tensors; parts.py:
                     their checkpoints, each rank its parts
    the rest         interruptions, numbers that are not finite, progress, records of the machine

Use `blockyard.tasks.train` for a whole run of a task, `Trainer` for a task object of your own; `Muon` and `lr_factor`
serve a loop of your own. Matrices are trained by Muon and all else by AdamW unless told otherwise.

The recipe, resume, ranks and the run folder: docs/training.md.
"""

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
    from blockyard.training.loggers import Logger as Logger
    from blockyard.training.loggers import register_logger as register_logger
    from blockyard.training.muon import Muon as Muon
    from blockyard.training.optim import Optimizers as Optimizers
    from blockyard.training.optim import lr_factor as lr_factor
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
            "loggers": "Logger register_logger",
            "muon": "Muon",
            "optim": "Optimizers lr_factor",
            "task": "Batch Task",
            "trainer": "Trainer",
        },
    )
