"""What the frames of a training look like, so that a recording that looks otherwise is noticed.

Four statistics of a frame, the same for every source of frames: level, occupied bandwidth, peak-to-average power and
the offset of what is occupied. A model answers for frames inside the range that its training had; outside it guesses.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blockyard.errors import InputError
from blockyard.files import parse_json, write_atomically

FILE = "familiar.json"
# Bins of the averaged spectrum: a power of two, at most this many.
BINS = 64
# A bin is occupied when it stands so far above the noise floor: 6 dB.
ABOVE = 4.0
# Of the bins, this share is taken to hold no more than noise: the floor is their mean.
QUIET = 0.25
# A raised cosine falls to a tenth of its power, where bands are taken to end, so far into its roll-off: at
# ½ (1 − r) + r · acos(−.8) / π of the symbol rate on either side.
AT_A_TENTH = 2 * math.acos(-0.8) / math.pi - 1
# Quantiles of the training's frames between which a recording's median is familiar.
LOW, HIGH = 0.002, 0.998
UNITS = {
    "level": "mean power {:.1f} dB",
    "bandwidth": "bandwidth {:.2f} of the sample rate",
    "peak": "peak-to-average power {:.1f} dB",
    "offset": "carrier offset {:.3f} of the sample rate",
}


def statistics(frames: Tensor) -> dict[str, Tensor]:
    """Return statistics of frames.

    Args:
        frames: complex [n, length].

    Returns: of each [n], float64: `level`, the mean power in dB; `bandwidth`, the share of the sample rate whose
        averaged spectrum stands 6 dB above the noise floor, NaN where nothing does; `peak`, the peak-to-average power
        ratio in dB; `offset`, the distance of the occupied band's middle from 0, as a share of the sample rate, NaN
        likewise.
    """
    power = torch.view_as_real(frames.resolve_conj()).double().square().sum(-1)
    mean = power.mean(-1).clamp(min=torch.finfo(torch.float64).tiny)
    spectrum = averaged_spectrum(frames)
    bins = spectrum.shape[-1]
    floor = spectrum.sort(dim=-1).values[:, : max(1, int(QUIET * bins))].mean(-1, keepdim=True)
    excess = torch.where(spectrum > ABOVE * floor, spectrum - floor, torch.zeros_like(spectrum))
    found = (excess > 0).sum(-1).double()
    place = (torch.arange(bins, dtype=torch.float64) - bins // 2) / bins
    offset = (excess * place).sum(-1) / excess.sum(-1)
    return {
        "level": 10 * mean.log10(),
        "bandwidth": torch.where(found > 0, found / bins, torch.nan),
        "peak": 10 * (power.amax(-1) / mean).clamp(min=1e-30).log10(),
        "offset": offset.abs(),
    }


def averaged_spectrum(frames: Tensor, bins: int = BINS) -> Tensor:
    """Return Welch's estimate of the power spectrum: Hann windows that overlap by half, lowest frequency first.

    Args:
        frames: complex [n, length].
        bins: at most so many.

    Returns: float64 [n, bins].
    """
    bins = min(bins, 1 << int(math.log2(max(frames.shape[-1], 1))))
    pieces = frames.unfold(-1, bins, max(bins // 2, 1))
    window = torch.hann_window(bins, periodic=True) if bins > 2 else torch.ones(bins)
    found = torch.fft.fft(pieces * window, dim=-1)
    return torch.fft.fftshift(torch.view_as_real(found).double().square().sum(-1).mean(1), dim=-1)


@dataclass(frozen=True)
class Familiar:
    """The ranges of a training's frames.

    Args:
        ranges: statistic -> lowest and highest value (quantiles, for all but one in 250 frames).
        normalised: the model brings every frame to unit power itself: the level tells nothing.
        samples_per_symbol: lowest and highest of the training; None for recordings, where nobody says it.
        bandwidth: of the training's digital signals, lowest and highest, as a share of the sample rate: where their
            spectra fall to a tenth, (1 + .59 roll-off) / samples per symbol; None likewise.
    """

    ranges: Mapping[str, tuple[float, float]]
    normalised: bool = False
    samples_per_symbol: tuple[float, float] | None = None
    bandwidth: tuple[float, float] | None = None

    @staticmethod
    def of(frames: Tensor, **known: Any) -> Familiar:
        """Return the ranges of frames [n, length]; further arguments as for the class."""
        ranges = {}
        for name, values in statistics(frames).items():
            values = values[torch.isfinite(values)]
            if len(values):
                low, high = values.quantile(LOW), values.quantile(HIGH)
                ranges[name] = (float(low), float(high))
        return Familiar(ranges, **known)

    def outside(self, frames: Tensor) -> str:
        """Say which statistic of a recording lies outside the training's, the one farthest out and by how much; "".

        Args:
            frames: complex [n, length] of one recording, on the scale that the model gets them in.
        """
        if not bool(frames.any()):
            return "all samples are 0"
        worst, line = 0.0, ""
        for name, values in statistics(frames).items():
            values = values[torch.isfinite(values)]
            if name not in self.ranges or not len(values) or (name == "level" and self.normalised):
                continue
            value, (low, high) = float(values.median()), self.ranges[name]
            # By how many widths of the range; a range of no width has that of a hundredth.
            beyond = max(low - value, value - high) / max(high - low, 0.01)
            if beyond > worst:
                side = f"{value - high:.2g} above" if value > high else f"{low - value:.2g} below"
                worst = beyond
                line = f"{UNITS[name].format(value)}; the training had {low:.3g} to {high:.3g} ({side})"
        return line

    def save(self, folder: Path) -> None:
        """Write familiar.json into a run folder."""
        data = {name: getattr(self, name) for name in self.__dataclass_fields__}
        write_atomically(folder / FILE, json.dumps(data, indent=1) + "\n")

    @staticmethod
    def load(folder: Path) -> Familiar | None:
        """Return what a run folder says; None where it says nothing.

        Raises:
            InputError: when it is damaged.
        """
        file = folder / FILE
        if not file.exists():
            return None
        try:
            found = parse_json(file.read_text(encoding="utf-8"))
            ranges = {str(n): _pair(v) for n, v in found["ranges"].items() if n in UNITS}
            known = {n: None if found[n] is None else _pair(found[n]) for n in ("samples_per_symbol", "bandwidth")}
            return Familiar(ranges, bool(found["normalised"]), **known)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise InputError(f"{file} is damaged ({error}); remove it to classify without the comparison") from error


def _pair(values: Any) -> tuple[float, float]:
    low, high = map(float, values)
    if not low <= high or not math.isfinite(low) or not math.isfinite(high):
        raise ValueError(f"{values} should be two numbers, the lower first")
    return low, high
