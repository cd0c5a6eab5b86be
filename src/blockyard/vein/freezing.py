"""The options of a training run that concern veins: what they need of the model, and the schedule they make."""

from __future__ import annotations

from torch import nn

from blockyard.errors import InputError
from blockyard.training.config import TrainConfig
from blockyard.vein.projector import VeinProjector
from blockyard.vein.training import VeinSchedule, vein_blocks


def schedule_veins(model: nn.Module, config: TrainConfig) -> VeinSchedule | None:
    """The schedule of thresholds and ranks that the options ask for, if they do.

    Raises:
        InputError: when an option would do nothing with this model, or a rank is out of range.
    """
    if config.vein_freeze_steps and not any(isinstance(m, VeinProjector) for m in model.modules()):
        raise InputError(f"train.vein_freeze_steps: {type(model).__name__} holds no VeinProjector to freeze")
    if config.vein_taus is None and config.vein_ranks is None:
        return None
    option = "vein_taus" if config.vein_taus is not None else "vein_ranks"
    try:
        if config.vein_taus is not None and not any(b.normals.s or b.metrics for b in vein_blocks(model).values()):
            raise InputError("no block corrects (s=0) or reports its error, so a threshold does nothing")
        option = "vein_ranks"
        return VeinSchedule(model, config.steps, taus=config.vein_taus, frozen_epochs=0, ranks=config.vein_ranks)
    except InputError as error:
        raise InputError(f"train.{option}: {error}") from None
