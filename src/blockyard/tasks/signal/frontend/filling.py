"""Noise for the empty part of the band that interpolation leaves.

Of p/q as many samples, p > q, only the middle q/p of the new band holds anything: the interpolation filter stops the
rest. Frames of the training have white noise in all of it; in frames without, receivers take the filter's stop band for
the noise floor, find SNRs of 80 dB and signals as wide as the recording's own noise. What the filter took is put back
with noise of the density that the recording has: outside of the signal's band it costs no matched filter anything.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from blockyard.tasks.signal.frontend.spectra import FRAME_BINS, LEAST_QUIET, averaged, noise_floor, windows_of

if TYPE_CHECKING:
    from blockyard.tasks.signal.frontend.resampling import Resampler

# Of the old band's half, so much lies before the interpolation filter begins to fall (a Kaiser window's transition).
FLAT = 0.84


class NoiseFilling:
    """Frames of interpolated samples, with noise in all of their band.

    Args:
        resampler: what made the samples; of a ratio up to 1 it leaves nothing empty.
        length: samples of a frame.
    """

    def __init__(self, resampler: Resampler, length: int) -> None:
        self.ratio: Fraction = resampler.ratio
        self.is_needed = self.ratio > 1
        if not self.is_needed:
            return
        # A recording's classification is the same every time.
        self._generator = torch.Generator().manual_seed(0)
        # As many bins of the old band as a frame's own spectrum has, as far as four windows of the frame go.
        self._bins = FRAME_BINS
        while 2 * self._bins <= FRAME_BINS * self.ratio and 8 * self._bins <= length:
            self._bins *= 2
        frequency = torch.fft.fftshift(torch.fft.fftfreq(self._bins))
        self._inside = frequency.abs() <= FLAT / (2 * float(self.ratio))
        # White noise through |H|² and through 1 − |H|² together is white.
        response = resampler.response(torch.fft.fftfreq(length))
        self._shape = (1 - response.square()).clamp(min=0).sqrt()

    def __call__(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Fill frames.

        Args:
            frames: complex64 [n, length].

        Returns: frames, and [n] bool, whether the noise of each is known; where it is of none they are as they were.
        """
        if not self.is_needed or not len(frames) or frames.shape[1] < self._bins:
            return frames, torch.full((len(frames),), not self.is_needed)
        spectra = averaged(frames, self._bins)[:, self._inside]
        noise, quiet = noise_floor(spectra, windows_of(frames.shape[1], self._bins))
        known = (quiet >= LEAST_QUIET) & (noise > 0)
        if not bool(known.any()):
            return frames, known
        # A frame in which a signal leaves no noise to see has that of the others.
        noise = torch.where(known, noise, noise[known].median())
        white = torch.randn(frames.shape, generator=self._generator, dtype=frames.dtype)
        added = torch.fft.ifft(white * self._shape, norm="ortho") * noise.sqrt().unsqueeze(-1)
        return frames + added, torch.ones_like(known)
