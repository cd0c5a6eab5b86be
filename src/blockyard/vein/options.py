"""Options of training that concern veins; costs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blockyard.errors import InputError
from blockyard.protocol.training import TrainingHook, TrainingOptions, check_least, check_weight

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class VeinTraining(TrainingOptions):
    """How models that hold veins are trained.

    Args:
        vein_lr_scale: factor on the learning rate of vein projectors.
        vein_freeze_steps: vein projectors stay at their initial values for this many steps.
        vein_guide_steps: for this many steps dense matrices lead the vein FFNs, fading out (self-guided training,
            arXiv 2406.16450); then they are dropped, and the model is as large as it says. One process only.
        vein_taus: thresholds of the vein blocks' corrections over training, each for an equal part of the steps (the
            vein-flow document: 0.25,0.18,0.10); none leaves the blocks' own.
        vein_ranks: directions of the FFNs' veins in use over training, growing or shrinking, each for an equal part of
            the steps; none = all of them.
    """

    vein_lr_scale: float = 0.2
    vein_freeze_steps: int = 0
    vein_guide_steps: int = 0
    vein_taus: tuple[float, ...] | None = None
    vein_ranks: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_least(self, "vein_freeze_steps", 0)
        check_least(self, "vein_guide_steps", 0)
        check_weight(self, "vein_lr_scale")
        for name, least in (("vein_taus", 0), ("vein_ranks", 1)):
            values = getattr(self, name)
            if values is not None and not (values and all(least <= value < float("inf") for value in values)):
                shown = ",".join(map(str, values)) or "nothing"
                raise InputError(f"train.{name}={shown} must be numbers of at least {least}, separated by commas")

    def scale(self, group: str) -> float:
        return self.vein_lr_scale if group == "vein" else 1.0

    def rate(self, group: str, step: int) -> float:
        # Rate 0 freezes a group (decay is scaled by the rate, too) while its averages warm up.
        return 0.0 if group == "vein" and step < self.vein_freeze_steps else 1.0

    def match(self, model: nn.Module, saved: Mapping[str, Tensor]) -> None:
        from blockyard.vein.guide import match_guides
        from blockyard.vein.training import match_ranks

        if self.vein_guide_steps:
            # A run that was interrupted while its vein FFNs were guided is the guided function.
            match_guides(model, saved)
        if self.vein_ranks:
            match_ranks(model, saved)

    def hooks(self, model: nn.Module, steps: int) -> list[TrainingHook]:
        if not (self.vein_freeze_steps or self.vein_guide_steps or self.vein_taus or self.vein_ranks):
            return []
        from blockyard.vein.hook import VeinHook

        freeze, guide = self.vein_freeze_steps, self.vein_guide_steps
        return [VeinHook(model, steps, freeze=freeze, guide=guide, taus=self.vein_taus, ranks=self.vein_ranks)]
