"""What the options of a vein block mean where they are not given: the presets `fast` and `seed`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from blockyard.vein.ffn import StabilizerKind


@dataclass(frozen=True)
class Preset:
    """What an option left at None means."""

    factored: bool
    tied: bool
    gated: bool
    gate_norm: bool
    qk_norm: bool
    wide: bool  # where no rank is named, the FFN's vein is d_model / 2 and its hidden layer d_model wide
    stabilizer: StabilizerKind
    eps: Literal["relative", "absolute"]
    rope: Literal["half", "interleaved", "none"]
    norm: Literal["rms", "layer"]


PRESETS = {
    "fast": Preset(
        factored=False,
        tied=True,
        gated=True,
        gate_norm=False,
        qk_norm=True,
        wide=True,
        stabilizer="none",
        eps="relative",
        rope="half",
        norm="layer",
    ),
    "seed": Preset(
        factored=True,
        tied=False,
        gated=False,
        gate_norm=True,
        qk_norm=False,
        wide=False,
        stabilizer="full",
        eps="absolute",
        rope="none",
        norm="layer",
    ),
}
