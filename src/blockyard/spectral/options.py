"""Options of training that concern spectral mixers; costs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from blockyard.protocol.training import TrainingOptions, check_weight


@dataclass(frozen=True, kw_only=True)
class SpectralTraining(TrainingOptions):
    """How models that hold spectral gates are trained.

    Args:
        gate_weight_decay: decay of the matrices that compute spectral gates, for spectra that oscillate; none means
            weight_decay.
    """

    gate_weight_decay: float | None = None

    def __post_init__(self) -> None:
        check_weight(self, "gate_weight_decay")

    def decay(self, group: str, usual: float) -> float:
        return self.gate_weight_decay if group == "gate" and self.gate_weight_decay is not None else usual
