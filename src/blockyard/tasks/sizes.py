"""Whether a run fits into memory: asked before its data are read and before its model is built."""

from __future__ import annotations

from typing import Any

from blockyard.machine.launch import local_rank, world_size
from blockyard.machine.memory import in_words, is_forced, refuse_beyond_memory
from blockyard.models.estimate import MODULE_BYTES, PARAMETER_BYTES, Count, count_model
from blockyard.tasks.kind import Run
from blockyard.training.distributed import pick_device

# Of a parameter in training: weight and gradient, and what the optimizer keeps (Muon one momentum, AdamW two).
STATE_BYTES = {"muon": 3 * PARAMETER_BYTES, "adamw": 4 * PARAMETER_BYTES}
# Activations of a block that the backward pass needs, in widths of the residual stream: its input, and at least what
# enters its FFN.
KEPT, KEPT_CHECKPOINTED = 2, 1
# What to ask for, by whether the activations are the larger part.
LESS = {False: "ask for less", True: "take fewer rows at once (train.batch_size, train.accumulate) or shorter ones"}


def check_data(run: Run[Any, Any]) -> None:
    """Refuse data that are made up and would not fit.

    Raises:
        InputError: see `refuse_beyond_memory`.
    """
    refuse_beyond_memory(run.kind.data_bytes(run.data, run.model), "data of this size take at least {}")


def check_training(run: Run[Any, Any], what: str = "the model", *, fitted: bool) -> None:
    """Refuse a training that would not fit: its weights, gradients, optimizer and the least of its activations.

    Called before the data are read and again when they are known: a vocabulary's size follows from them.

    Args:
        run: the run.
        what: its model, as the error names it.
        fitted: whether the model fits the data already; until then its blocks alone are counted.

    Raises:
        InputError: when it does not fit or cannot be built, see `refuse_beyond_memory`.
    """
    if is_forced():
        return
    train = run.train
    device = pick_device(train.device, local_rank() if world_size() > 1 else None)
    kept = _activation_bytes(run)
    # First what needs no model: an absurd length or depth would make the count long.
    refuse_beyond_memory(
        kept, f"{what} takes at least {{}} to train, for the activations of a batch", device, LESS[True]
    )
    count = _counted(run, what, fitted)
    shared = world_size() if train.parallel == "fsdp2" else 1
    state = count.parameters * STATE_BYTES[train.optimizer] // shared
    of_blocks = "" if fitted else " of its blocks"
    words = f"{count.parameters:,} parameters{of_blocks} and {in_words(kept)} of activations"
    needed = state + kept + count.modules * MODULE_BYTES
    refuse_beyond_memory(needed, f"{what} takes at least {{}} to train ({words})", device, LESS[kept > state])
    if device.type != "cpu":
        # It is built there and moved.
        refuse_beyond_memory(count.bytes, f"{what} takes at least {{}} ({count.parameters:,} parameters)")


def check_model(run: Run[Any, Any], what: str = "the model") -> None:
    """Refuse a model that would not fit.

    Raises:
        InputError: when it does not fit or cannot be built, see `refuse_beyond_memory`.
    """
    if not is_forced():
        count = _counted(run, what, True)
        refuse_beyond_memory(count.bytes, f"{what} takes at least {{}} ({count.parameters:,} parameters)")


def _counted(run: Run[Any, Any], what: str, fitted: bool) -> Count:
    return count_model(run.model, run.kind.build_model if fitted else None, what)


def _activation_bytes(run: Run[Any, Any]) -> int:
    """Return the least that the backward pass of one rank's rows keeps."""
    model, train = run.model, run.train
    try:
        length = model.length
    except NotImplementedError:
        # A model of a plug-in that has no one length.
        return 0
    rows = max(train.batch_size // (train.accumulate * world_size()), 1)
    each = KEPT_CHECKPOINTED if train.checkpoint_activations else KEPT
    # Autocast keeps half of a float's bytes.
    size = 2 if train.precision != "fp32" else 4
    parts = 2 if model.is_complex else 1
    return rows * length * model.d_model * model.n_layers * each * size * parts
