"""What veins do around the steps of a training run: thresholds, ranks in use, and guides that lead and are dropped."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from blockyard.errors import InputError
from blockyard.protocol.training import TrainingHook
from blockyard.vein.ffn import Guide
from blockyard.vein.guide import attach_guides, drop_guides, guide_share, set_guide_share
from blockyard.vein.projector import VeinProjector
from blockyard.vein.training import VeinSchedule, vein_blocks


class VeinHook(TrainingHook):
    """The schedules of a run's veins.

    Args:
        model: what is trained; guides are attached to it.
        steps: steps of the run.
        freeze: steps for which projectors stay as they are (the loop does that, by rate 0).
        guide: steps for which dense matrices lead the vein FFNs.
        taus: thresholds over training; None leaves them.
        ranks: directions in use over training; None = all of them.

    Raises:
        InputError: when an option would do nothing with this model, or a rank is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        steps: int,
        *,
        freeze: int,
        guide: int,
        taus: Sequence[float] | None,
        ranks: Sequence[int] | None,
    ) -> None:
        self.model, self.guided = model, guide
        if freeze and not any(isinstance(m, VeinProjector) for m in model.modules()):
            raise InputError(f"train.vein_freeze_steps: {type(model).__name__} holds no VeinProjector to freeze")
        # Before guides: they start as what the directions in use compute.
        self.schedule = schedule_veins(model, steps, taus, ranks)
        if self.guided:
            attach_guides(model)

    def before_step(self, step: int, progress: float) -> dict[str, float]:
        if step < self.guided:
            set_guide_share(self.model, guide_share((step + 1) / self.guided))
        scheduled = self.schedule.at(progress) if self.schedule is not None else {}
        return {f"vein_{name}": value for name, value in scheduled.items()}

    def after_step(self, step: int) -> bool:
        if step + 1 != self.guided:
            return False
        # Their share was 0 already.
        drop_guides(self.model)
        return True

    def extra_flops(self, step: int, tokens: int) -> int:
        if step >= self.guided:
            return 0
        # Forward once, and backward twice as much.
        return sum(3 * m.flops(tokens) for m in self.model.modules() if isinstance(m, Guide))

    def check_ranks(self, count: int) -> None:
        if self.guided and count > 1:
            raise InputError("train.vein_guide_steps: guided vein FFNs train in one process only")


def schedule_veins(
    model: nn.Module, steps: int, taus: Sequence[float] | None, ranks: Sequence[int] | None
) -> VeinSchedule | None:
    """Make the schedule of thresholds and ranks that is asked for, if one is.

    Raises:
        InputError: when it would do nothing with this model, or a rank is out of range.
    """
    if taus is None and ranks is None:
        return None
    option = "vein_taus" if taus is not None else "vein_ranks"
    try:
        if taus is not None and not any(b.normals.s or b.metrics for b in vein_blocks(model).values()):
            raise InputError("no block corrects (s=0) or reports its error, so a threshold does nothing")
        option = "vein_ranks"
        return VeinSchedule(model, steps, taus=taus, frozen_epochs=0, ranks=ranks)
    except InputError as error:
        raise InputError(f"train.{option}: {error}") from None
