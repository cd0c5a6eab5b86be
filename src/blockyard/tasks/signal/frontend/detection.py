"""What stands above the noise, in time and frequency: bursts, their first and last sample, the edges of their band.

A row of the spectrogram is 2048 samples: Welch's spectrum of 512 bins, then a mean over three bins beside one another,
which makes a cell of noise vary as the mean of about twelve exponential numbers does. The noise floor of a bin is its
median over the rows of a second or so, but no higher than what two fifths of the bins stay under: what is always there
is a signal, not noise. Thresholds are quantiles of that distribution, so that false alarms have a stated rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from blockyard.errors import InputError, require
from blockyard.tasks.signal.frontend.regions import Region, Regions
from blockyard.tasks.signal.frontend.spectra import averaged, windows_of

BINS = 512
ROW = 2048
# A mean over three bins of a Hann window, whose powers are correlated by 4/9 and 1/36, has 1 / .537 times the windows'
# weight.
SMOOTHED = 1.86
# Chances that a cell of noise stands above the thresholds: one that belongs to a region, one of two in a row that make
# a region, and one that makes a region by itself.
P_LOW, P_HIGH, P_ALONE = 5e-3, 1e-5, 1e-10
# A bin whose median stands more than this above the quantile of all is always occupied (1.8 dB).
ALWAYS = 1.5
QUANTILE = 0.4
# No receiver has a floor further below the strongest bin: 90 dB, where the sidelobes of Hann's window lie within thirty
# bins of a line.
DEEPEST = 1e-9
# Rows that the floor is the median of.
MOST_ROWS = 1024
# The edges of a band: where it falls to a tenth of its level; those of a burst in time, to so much of its power.
EDGE, LITTLE = 0.1, 0.2


@dataclass(frozen=True)
class Burst:
    """Something that was sent.

    Args:
        number: from 1 on.
        start: its first sample.
        stop: the sample after its last; so far, if it is open.
        lower: edge of its band, cycles per sample.
        upper: edge.
        snr: in that band, dB.
        is_open: whether it goes on.
        rows: of the spectrogram.
    """

    number: int
    start: int
    stop: int
    lower: float
    upper: float
    snr: float
    is_open: bool
    rows: int

    @property
    def width(self) -> float:
        return self.upper - self.lower

    @property
    def centre(self) -> float:
        return (self.lower + self.upper) / 2


class Detector:
    """Bursts in a stream of samples.

    What it finds: signals of 2 dB and more in their own band that last two rows (4096 samples) or more; shorter ones if
    they are stronger (5 dB averaged over a row). One that fills more than half of the band is not found: there is no
    noise beside it.

    Attributes:
        floor: [bins], the noise floor as it was last, per sample; None before the first samples.
    """

    def __init__(self) -> None:
        np = require("numpy", extra="train")
        self._np = np
        stats = require("scipy.stats", extra="signals")
        self.shape = windows_of(ROW, BINS) * SMOOTHED
        low, high, alone = (float(stats.gamma.isf(p, self.shape) / self.shape) for p in (P_LOW, P_HIGH, P_ALONE))
        # The median of the distribution over its mean.
        self._median = float(stats.gamma.median(self.shape) / self.shape)
        self._regions = Regions(BINS, low, high, alone)
        self._seen = np.zeros((0, BINS), np.float32)
        self._starts: list[tuple[int, int]] = []
        self._rows = 0
        self.floor: Any = None

    @property
    def count(self) -> int:
        """How many bursts there were."""
        return self._regions.count

    def push(self, start: int, samples: Tensor) -> list[Burst]:
        """Take in samples and return every burst that has some of them or has ended since.

        Args:
            start: number of the first.
            samples: complex64 [n], n a multiple of `ROW` but at the end of a stretch, where the rest is left out.
        """
        rows = len(samples) // ROW
        if not rows:
            return []
        np = self._np
        raw = averaged(samples[: rows * ROW].view(rows, ROW), BINS)
        around = torch.nn.functional.pad(raw[:, None], (1, 1), mode="circular")
        spectra = torch.nn.functional.avg_pool1d(around, 3, stride=1)[:, 0].numpy()
        if not np.isfinite(spectra).all():
            raise InputError("the samples are so large that their power is beyond single precision: divide them first")
        self._seen = np.concatenate([self._seen, spectra])[-MOST_ROWS:]
        self.floor = self._floor(self._seen)
        self._starts.append((self._rows, start))
        self._rows += rows
        found = [self._burst(region) for region in self._regions.push(spectra / self.floor)]
        # Rows of bursts that are open are still asked for.
        while len(self._starts) > 1 and self._starts[1][0] <= self._regions.oldest:
            self._starts.pop(0)
        return found

    def finish(self) -> list[Burst]:
        """End a stretch: the bursts that were open."""
        return [self._burst(region) for region in self._regions.finish()]

    def _floor(self, rows: Any) -> Any:
        np = self._np
        # Exact zeros (squelch, a file's padding) are no floor.
        heard = rows[rows.any(1)]
        if not len(heard):
            return np.full(BINS, 1e-30, np.float32)
        middle = np.median(heard, axis=0) / self._median
        base = float(np.quantile(middle, QUANTILE))
        # Nor is the rounding that a line without noise stands in.
        base = max(base, DEEPEST * float(middle.max()), 1e-30)
        return np.maximum(np.where(middle > ALWAYS * base, base, middle), 1e-3 * base).astype(np.float32)

    def _sample(self, row: int) -> int:
        """Return the first sample of a row."""
        began, start = next(pair for pair in reversed(self._starts) if pair[0] <= row or pair is self._starts[0])
        return start + (row - began) * ROW

    def _burst(self, region: Region) -> Burst:
        np = self._np
        excess = region.spectrum / region.rows - 1
        inside = excess[region.lower : region.upper + 1]
        level = float(np.quantile(inside, 0.75))
        # No lower than what the mean over the region's rows of noise reaches.
        least = max(EDGE * level, 3 / math.sqrt(self.shape * region.rows))
        place = region.lower + int(inside.argmax())
        above = np.nonzero(excess[region.lower : region.upper + 1] > least)[0] + region.lower
        low, high = (int(above[0]), int(above[-1])) if len(above) else (place, place)
        # The mean over three bins widens what it sees by one on either side.
        if high - low >= 2:
            low, high = low + 1, high - 1
        start, stop = self._sample(region.first), self._sample(region.last) + ROW
        start += round(ROW * _missing(region.envelope))
        if not region.is_open:
            stop -= round(ROW * _missing(region.ending[::-1]))
        stop = max(stop, start + 1)
        # The rows' mean, of the part of them in which it was there.
        power = max(float(excess[low : high + 1].mean()), 1e-3) * region.rows * ROW / (stop - start)
        return Burst(
            region.number, start, stop, (low - 0.5) / BINS - 0.5, (high + 0.5) / BINS - 0.5,
            10 * math.log10(power), region.is_open, region.rows,
        )  # fmt: skip


def _missing(rows: list[float]) -> float:
    """Return how many rows a burst was not there yet, by its power in the first of them and in those that follow.

    Cells of noise beside a burst may be joined to it: rows of little power are no part of it.
    """
    if len(rows) < 3:
        return 0.0
    level = sorted(rows)[len(rows) // 2]
    if level <= 0:
        return 0.0
    whole = next((number for number, power in enumerate(rows) if power > LITTLE * level), 0)
    part = 1 - rows[whole] / level
    # Less than a quarter is the scatter of a row's power.
    return whole + (part if part > 0.25 else 0.0)
