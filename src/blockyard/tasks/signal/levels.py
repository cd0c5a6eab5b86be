"""The SNR of every frame, for a model that is told it."""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import Tensor

from blockyard.errors import InputError
from blockyard.tasks.signal.files import snr_at
from blockyard.tasks.signal.recordings.recording import Recording


class Levels:
    """The SNR of every frame in dB (Es/N0), for a model that is told it: given, or what the file's annotations say.

    Args:
        recording: the samples.
        assets: of the run.
        oversampling: samples per symbol; annotations speak of samples, Es/N0 of symbols.
        given: for all frames; none asks the annotations.

    Attributes:
        power: lowest and highest mean power of frames with a signal of power 1 at these SNRs.

    Raises:
        InputError: when neither says it, or it is no number.
    """

    def __init__(self, recording: Recording, assets: Any, oversampling: float, given: float | None) -> None:
        self.recording, self.given = recording, given
        self.least, self.most = assets.snr
        self.shift = 10 * math.log10(oversampling)
        if given is None:
            stated = [a.snr_db + self.shift for a in recording.annotations if a.snr_db is not None]
            if not stated:
                raise InputError(f"this run's model is told the SNR, and {recording.name} says none: give --snr DB")
        elif math.isfinite(given):
            stated = [given]
        else:
            raise InputError(f"--snr={given} should be a number of dB")
        if min(stated) < self.least or max(stated) > self.most:
            far = f"trained at {self.least:g} to {self.most:g} dB"
            print(f"note: {far}; what lies beyond is read as the nearest", file=sys.stderr)
        self.low, self.high = (min(max(level, self.least), self.most) for level in (min(stated), max(stated)))
        # Signal power 1, and a symbol's share of the noise in every sample.
        self.power = tuple(1 + oversampling * 10 ** (-level / 10) for level in (self.high, self.low))

    def at(self, samples: Tensor) -> Tensor:
        """Return the SNR at some samples, [n]."""
        if self.given is not None:
            return torch.full((len(samples),), self.low)
        found = snr_at(self.recording, samples)
        assert found is not None  # there are annotations with an SNR
        return (found + self.shift).clamp(self.least, self.most)
