"""What a recording is understood as, before anything is trained on it or classified: lines for people, and a dict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from blockyard.tasks.signal.frontend.resampling import Plan
from blockyard.tasks.signal.frontend.spectra import (
    Band,
    CyclicLine,
    averaged,
    frame_snr,
    occupied_band,
    symbol_rate,
    windows_of,
)
from blockyard.tasks.signal.recordings.recording import Recording

# Blocks that the statistics are taken of: some seconds of most receivers.
MOST_BLOCKS = 16
BINS = 1024
# The band outside of which half of the rest of the power lies on either side.
OCCUPIED = 0.99
MOST_SPANS = 8


@dataclass(frozen=True)
class Level:
    """How strong the samples are and where in the band they lie.

    Args:
        samples: how many were looked at.
        power: mean of |x|².
        peak_to_average: largest |x|² over the mean, dB.
        offset: |mean of x|² over the mean power, dB: a receiver's leak at 0 Hz.
        zeros: share of samples that are exactly 0.
        clipped: share of samples with |I| or |Q| at what integers can hold at most.
        centre: of the occupied band, cycles per sample.
        bandwidth: that holds 99 % of the power, cycles per sample.
        occupied: the band that stands above the noise, down to a tenth of its level; None where nothing does, or no
            noise is left to tell it from.
        line: the symbol rate, where the power of the signal has a line; None where it has none.
        snr: of frames of 1024 samples in the band that they occupy, their median in dB; None where nothing can be said.
    """

    samples: int
    power: float
    peak_to_average: float
    offset: float
    zeros: float
    clipped: float
    centre: float
    bandwidth: float
    occupied: Band | None
    line: CyclicLine | None
    snr: float | None


def measure(recording: Recording, channel: int = 0) -> Level:
    """Measure the first millions of samples."""
    count, energy, peak, zeros, at_edge = 0, 0.0, 0.0, 0, 0
    mean, spectrum = 0j, torch.zeros(BINS, dtype=torch.float64)
    for _, block in islice(recording.blocks(channel, multiple=BINS), MOST_BLOCKS):
        squared = block.to(torch.complex128).abs().square()
        count += len(block)
        energy += float(squared.sum())
        peak = max(peak, float(squared.max()))
        zeros += int((squared == 0).sum())
        mean += complex(block.to(torch.complex128).sum())
        # The largest code of 8 bits is 127 of 128; floating point has no edge, and no power near 1 by itself.
        largest = torch.view_as_real(block).abs().amax(-1)
        at_edge += int(((largest > 0.99) & (largest <= 1)).sum()) if float(largest.max()) <= 1 else 0
        spectrum += _spectrum(block)
    power = energy / count
    centre, bandwidth = _occupied(spectrum)
    occupied, line, snr = _signal(recording, channel)
    return Level(
        count, power, _db(peak / power if power else 0.0), _db(abs(mean / count) ** 2 / power if power else 0.0),
        zeros / count, at_edge / count, centre, bandwidth, occupied, line, snr,
    )  # fmt: skip


def _signal(recording: Recording, channel: int) -> tuple[Band | None, CyclicLine | None, float | None]:
    """Return what stands above the noise in the first million samples of the first stretch."""
    samples = next(recording.blocks(channel))[1]
    # Of unit power: squares of the largest numbers of float32 are beyond it.
    samples = samples / torch.view_as_real(samples).abs().amax().clamp(min=1e-30)
    if len(samples) < BINS:
        return None, None, None
    band = occupied_band(averaged(samples, BINS), windows_of(len(samples), BINS))
    levels = frame_snr(samples[: len(samples) // BINS * BINS].view(-1, BINS))
    levels = levels[torch.isfinite(levels)]
    line = None if band is None else symbol_rate(samples, band)
    return band, line, round(float(levels.median()), 1) if len(levels) else None


def _spectrum(block: Tensor) -> Tensor:
    """Return power in BINS bands, lowest frequency first: Welch's, with a Hann window, half overlapping."""
    if len(block) < BINS:
        block = torch.nn.functional.pad(block, (0, BINS - len(block)))
    # In double precision: samples may be as large as float32 can hold, and their powers and sums are larger.
    windows = block.to(torch.complex128).unfold(0, BINS, BINS // 2) * torch.hann_window(BINS, dtype=torch.float64)
    return torch.fft.fftshift(torch.fft.fft(windows).abs().square().sum(0))


def _occupied(spectrum: Tensor) -> tuple[float, float]:
    """Return centre and width of the band that holds OCCUPIED of the power, in cycles per sample."""
    total = float(spectrum.sum())
    if not total:
        return 0.0, 0.0
    share = spectrum.cumsum(0) / total
    low = int((share >= (1 - OCCUPIED) / 2).nonzero()[0])
    high = int((share >= 1 - (1 - OCCUPIED) / 2).nonzero()[0])
    return ((low + high) / 2 - BINS / 2) / BINS, (high - low + 1) / BINS


def _db(ratio: float) -> float:
    return float("-inf") if ratio <= 0 else float(10 * torch.tensor(ratio, dtype=torch.float64).log10())


def understanding(
    recording: Recording, channel: int = 0, plan: Callable[[Recording, Band | None], Plan] | None = None
) -> list[str]:
    """Say what a recording is taken for, a line each.

    Args:
        recording: the samples.
        channel: which of its channels.
        plan: says how `classify` would bring it to what a run was trained with.
    """
    rate, count = recording.sample_rate, recording.count
    level = measure(recording, channel)
    long = "" if rate is None or count is None else f", {count / rate:.6g} s"
    channels = f", {recording.channels} channels (channel {channel} is read)" if recording.channels > 1 else ""
    lines = [
        f"{recording.name}: {recording.kind}, {count or 0:,} samples{long}{channels}",
        f"  sample rate: {f'{rate:,.10g} Hz' if rate else 'not said; give --data.sample_rate'}",
    ]
    for span in recording.spans[:MOST_SPANS]:
        parts = [f"samples {span.start:,} … {span.start + (span.count or 0) - 1:,}"]
        parts += [f"at {span.frequency:,.9g} Hz"] if span.frequency is not None else []
        parts += [f"from {span.time}"] if span.time else []
        lines.append(f"  stretch: {', '.join(parts)}")
    if len(recording.spans) > MOST_SPANS:
        more = len(recording.spans) - MOST_SPANS
        lines.append(f"  … and {more} more stretches; no frame reaches from one into the next")
    of = "" if level.samples == count else f" (of the first {level.samples:,} samples)"
    lines.append(
        f"  level: mean power {level.power:.4g}, peak to average {level.peak_to_average:.1f} dB, "
        f"offset {level.offset:.1f} dB{of}"
    )
    hertz = "" if rate is None else f" ({level.bandwidth * rate:,.0f} Hz wide, centre {level.centre * rate:+,.0f} Hz)"
    lines.append(
        f"  band with 99 % of the power: {level.bandwidth:.3f} of the sample rate, centre {level.centre:+.3f}{hertz}"
    )
    lines += _signal_lines(level, rate)
    if plan is not None:
        found = plan(recording, level.occupied)
        lines.append(f"  classify: {found.why or 'takes the samples as they are'}")
    labels = sorted({a.label for a in recording.annotations if a.label})
    if recording.annotations:
        named = f": {', '.join(labels[:8])}{' …' if len(labels) > 8 else ''}" if labels else ""
        lines.append(f"  annotations: {len(recording.annotations)}{named}")
    lines += [f"  note: {note}" for note in (*recording.notes, *warnings(level))]
    return lines


def _signal_lines(level: Level, rate: float | None) -> list[str]:
    """Say what stands above the noise."""
    band = level.occupied
    if band is None:
        return ["  signal: nothing stands above the noise, or it fills the band and leaves none to tell it from"]

    def hertz(value: float, sign: str = "") -> str:
        return f"{value:{sign}.4f} of the sample rate" + ("" if rate is None else f" ({value * rate:{sign},.0f} Hz)")

    several = (
        "" if band.share > 0.8 else f"; {100 * (1 - band.share):.0f} % of what stands above the noise lies elsewhere"
    )
    lines = [f"  signal: occupied bandwidth {hertz(band.width)}, carrier offset {hertz(band.centre, '+')}{several}"]
    if level.line is not None:
        symbols = f"{level.line.rate * rate:,.7g} symbols a second, " if rate is not None else ""
        above = f"a line of |x|² {level.line.above:.0f} dB above what is around it"
        lines.append(f"  symbol rate: {symbols}{1 / level.line.rate:.4g} samples a symbol ({above})")
    else:
        lines.append("  symbol rate: no line of |x|² (a constant envelope, speech, or a roll-off near 0)")
    if level.snr is not None:
        known = "" if level.line is None else ", Es/N0 about .4 dB more"
        lines.append(f"  SNR: {level.snr:.1f} dB in the occupied band{known}")
    return lines


def warnings(level: Level) -> list[str]:
    """Say what is odd about the samples."""
    found = []
    if level.zeros > 0.001:
        why = "squelch, dropped buffers, or a level of a code or less"
        found.append(f"{100 * level.zeros:.1f} % of the samples are exactly 0 ({why})")
    if level.clipped > 0.05:
        found.append(f"{100 * level.clipped:.1f} % of the samples are at full scale: the receiver was overdriven")
    if level.offset > -10:
        found.append("much of the power is at 0 Hz: a receiver's own, unless a carrier is meant to be there")
    return found


def as_dict(
    recording: Recording, channel: int = 0, plan: Callable[[Recording, Band | None], Plan] | None = None
) -> dict[str, Any]:
    """Return the same as plain data."""
    measured = measure(recording, channel)
    level = {key: None if value in (float("inf"), float("-inf")) else value
             for key, value in asdict(measured).items()}  # fmt: skip
    planned = {}
    if plan is not None:
        found = plan(recording, measured.occupied)
        planned = {"classify": {"up": found.ratio.numerator, "down": found.ratio.denominator, "why": found.why}}
    return {
        "name": recording.name,
        "kind": recording.kind,
        "samples": recording.count,
        "channels": recording.channels,
        "sample_rate": recording.sample_rate,
        "stretches": [asdict(span) for span in recording.spans],
        "annotations": [asdict(annotation) for annotation in recording.annotations],
        "level": level,
        "notes": list(recording.notes),
        **planned,
    }
