"""Bursts on their own: each is shifted to 0 Hz, filtered and resampled to what the model knows, and cut into frames.

    wide samples -> Detector -> of each burst: x_n · exp(−2πi f n) -> resample_poly p/q -> frames

Two blocks of samples are held, and of a burst that goes on its filter's state and less than a frame: a carrier of an
hour takes no more memory than one of a second.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from blockyard.tasks.signal.frontend.detection import BINS, ROW, Burst, Detector
from blockyard.tasks.signal.frontend.filling import NoiseFilling
from blockyard.tasks.signal.frontend.regions import GAP_ROWS
from blockyard.tasks.signal.frontend.resampling import MOST, Resampler, simple
from blockyard.tasks.signal.recordings.recording import Recording

# Band that a burst is given after resampling where the training says nothing, as a share of the new rate: five samples
# a symbol at a roll-off of .35. Within what the training had it is nearest to this.
BAND = 0.27
# A burst that goes on is taken up when it has so many rows, so that its band is known.
ENOUGH_ROWS = 64
# A line: a tone, or what is as narrow. It may be narrower than any modulation of the training.
LINE_BINS = 3


@dataclass(frozen=True)
class Wanted:
    """What a model wants of a burst.

    Args:
        length: samples of a frame.
        bandwidth: lowest and highest of its training, as a share of the sample rate.
        per_symbol: samples of a symbol before (by the symbol rate that the user gives) and after; None for neither.
    """

    length: int
    bandwidth: tuple[float, float] | None = None
    per_symbol: tuple[float, float] | None = None

    def ratio(self, burst: Burst) -> Fraction | None:
        """Return the resampling of a burst; None if it is too short for a frame of any bandwidth that the model
        knows."""
        if self.per_symbol is not None:
            wanted = self.per_symbol[1] / self.per_symbol[0]
            ratio = simple(wanted, wanted, wanted)
            return ratio if burst.is_open or (burst.stop - burst.start) * ratio >= self.length else None
        low, high = self.bandwidth or (BAND / 2, BAND * 1.5)
        target = min(max(BAND, low), high)
        least, most = burst.width / high, burst.width / low
        wanted = min(burst.width / target, 1.0)
        # The last filter's ends and the rounding of the ratio take a little.
        needed = 0.0 if burst.is_open else 1.15 * self.length / (burst.stop - burst.start)
        if needed > wanted:
            if needed > min(most, 1.0) and burst.width * BINS > LINE_BINS:
                return None
            wanted = min(needed, 1.0)
            if (burst.stop - burst.start) < self.length:
                return None
        least, most = min(least, wanted), max(min(most, 1.0), wanted)
        return simple(max(wanted, 1 / MOST), least, most)


class Cut:
    """One burst's samples as frames, in a stream.

    Args:
        burst: as it is known when it is taken up.
        ratio: of the resampling.
        length: samples of a frame.
    """

    def __init__(self, burst: Burst, ratio: Fraction, length: int) -> None:
        self.centre, self.ratio, self.length = burst.centre, ratio, length
        self.place = burst.start
        self._resampler = Resampler(ratio)
        self._fill = NoiseFilling(self._resampler, length)
        self._rest = torch.zeros(0, dtype=torch.complex64)

    def push(self, samples: Tensor, last: bool) -> Tensor:
        """Take in the next samples of the recording, [n]; return the frames that are whole, [m, length]."""
        # In double precision, and from the recording's first sample: the carrier goes on over blocks, however late.
        turns = (self.centre * (self.place + torch.arange(len(samples), dtype=torch.float64))).frac()
        angle = (-2 * math.pi * turns).float()
        shifted = samples * torch.complex(angle.cos(), angle.sin())
        self.place += len(samples)
        found = torch.cat([self._rest, self._resampler.push(shifted, last)])
        whole = len(found) // self.length
        self._rest = found[whole * self.length :].clone()
        return self._fill(found[: whole * self.length].view(whole, self.length))[0]


@dataclass(frozen=True)
class Part:
    """Frames of a burst.

    Args:
        burst: as it is known now; with `is_open` off nothing of it follows.
        frames: complex64 [n, length], around 0 Hz.
    """

    burst: Burst
    frames: Tensor


def bursts_of(
    recording: Recording, channel: int, wanted: Wanted, seen: Any = None, size: int | None = None
) -> Iterator[Part]:
    """Find the bursts of a recording and yield the frames of each, a part at a time.

    Args:
        recording: the samples.
        channel: which of its channels.
        wanted: what the model takes.
        seen: called with (first sample, samples) of every block, before its parts.
        size: samples of a block, about; none means a million.
    """
    # Numbers go on over stretches; detectors do not, as another stretch may be of another frequency.
    begins = {span.start for span in recording.spans}
    taken = 0
    detector, cuts = Detector(), dict[int, Cut | None]()
    held: list[tuple[int, Tensor]] = []
    # The first sample that a burst that goes on still needs.
    needed: dict[int, int] = {}

    def parts(found: list[Burst]) -> Iterator[Part]:
        for burst in found:
            known = burst.number in cuts
            if burst.is_open and burst.rows < ENOUGH_ROWS and not known:
                needed[burst.number] = burst.start
                continue
            if not known:
                ratio = wanted.ratio(burst)
                cuts[burst.number] = None if ratio is None else Cut(burst, ratio, wanted.length)
            cut = cuts[burst.number]
            frames = torch.zeros(0, wanted.length, dtype=torch.complex64)
            if cut is not None:
                frames = cut.push(between(held, cut.place, burst.stop), not burst.is_open)
            needed[burst.number] = burst.stop if cut is None else cut.place
            if not burst.is_open:
                del cuts[burst.number], needed[burst.number]
            yield Part(replace(burst, number=taken + burst.number), frames)

    for start, block in recording.blocks(channel, size=size, multiple=ROW):
        if start in begins and held:
            yield from parts(detector.finish())
            taken, detector, held = taken + detector.count, Detector(), []
            cuts.clear()
            needed.clear()
        if seen is not None:
            seen(start, block)
        held.append((start, block))
        yield from parts(detector.push(start, block))
        # A burst whose first cells are in these rows may turn out to have begun a few rows before them.
        keep = min(needed.values(), default=start + len(block)) - GAP_ROWS * ROW
        held = [pair for pair in held if pair[0] + len(pair[1]) > keep]
    yield from parts(detector.finish())


def between(held: list[tuple[int, Tensor]], start: int, stop: int) -> Tensor:
    """Return the samples of some blocks from `start` to before `stop`."""
    parts = [block[max(start - first, 0) : max(stop - first, 0)] for first, block in held]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.complex64)
