"""What the spectrum of samples tells: where the noise floor lies, which band is occupied, how strong the signal is and,
where there is a cyclic line, how many symbols a second it has.

White noise of power σ² per sample has a spectrum of σ² here, at every frequency; a sinusoid of power P stands at about
P · bins in its bin. Frequencies are in cycles per sample, from −½ to ½, lowest first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Windows of a frame's own spectrum, and the shortest frame that has one.
FRAME_BINS = 64
SHORTEST = 128
# A bin belongs to the noise as long as it stands less than this above the mean of those that do, in deviations of a bin
# of noise: .18 of the mean over 31 half-overlapping windows of 64 samples, a frame of 1024; of fewer windows more.
DEVIATIONS = 4.0
# Where less than this share of the bins is noise, nothing says what the noise is: the signal fills the band.
LEAST_QUIET = 0.2
# A signal's bins stand so far above the floor (2 dB); the band of a recording ends where it falls to a tenth.
EDGE = 0.1
# Bins of a recording's averaged spectrum.
BINS = 1024
# No receiver has a floor further below a line in a bin of its spectrum: 130 dB.
DEEPEST = 1e-13
# Samples that the symbol rate is looked for in.
MOST_CYCLIC = 1 << 20


def averaged(samples: Tensor, bins: int) -> Tensor:
    """Return Welch's spectrum with Hann windows that overlap by half.

    Args:
        samples: complex [..., n], n at least `bins`.
        bins: samples of a window.

    Returns: [..., bins], lowest frequency first.
    """
    window = torch.hann_window(bins, periodic=True)
    found = torch.fft.fft(samples.unfold(-1, bins, bins // 2) * window, dim=-1)
    # Squares summed over the windows as real numbers, real and imaginary parts side by side: |·|² of complex ones costs
    # ten times as much.
    parts = torch.view_as_real(found).flatten(-2).square().sum(-2)
    power = parts.unflatten(-1, (bins, 2)).sum(-1) / found.shape[-2]
    return torch.fft.fftshift(power, dim=-1) / float(window.square().sum())


def windows_of(count: int, bins: int) -> float:
    """Return how many independent windows `count` samples are worth: those of Hann that overlap by half have powers
    correlated by 1/36 (Welch 1967)."""
    made = max((count - bins) // (bins // 2) + 1, 1)
    return made / (1 + (made - 1) / made / 18)


def noise_floor(spectra: Tensor, windows: float, steps: int = 12) -> tuple[Tensor, Tensor]:
    """Return the mean of the bins that hold noise alone, and which share of all bins they are.

    Begins with the quietest quarter and takes in what stands less than four deviations above the mean of what is in,
    until that no longer changes: the bins of a signal stay outside, and the mean over all bins of noise has no bias,
    as a low quantile would have.

    Args:
        spectra: [..., bins].
        windows: independent windows that each is averaged over.
        steps: at most so many.

    Returns: [...] and [...].
    """
    ordered = spectra.sort(dim=-1).values
    bins = ordered.shape[-1]
    sums = ordered.cumsum(-1)
    number = torch.arange(1, bins + 1, dtype=spectra.dtype)
    most = 1 + DEVIATIONS / math.sqrt(windows)
    count = torch.full(spectra.shape[:-1], max(bins // 4, 1), dtype=torch.long)
    # The quietest quarter of noise lies below its mean, by about 1.3 deviations of a bin.
    low = 1 / max(1 - 1.3 / math.sqrt(windows), 0.2)
    mean = sums.gather(-1, count.unsqueeze(-1) - 1).squeeze(-1) / number[count - 1] * low
    for _ in range(steps):
        inside = (ordered <= most * mean.unsqueeze(-1)).sum(-1).clamp(min=1)
        mean = sums.gather(-1, inside.unsqueeze(-1) - 1).squeeze(-1) / inside
        if bool((inside == count).all()):
            break
        count = inside
    return mean, count / bins


def frame_snr(frames: Tensor, per_symbol: float | None = None) -> Tensor:
    """Return the SNR of frames, blindly: power of the signal over that of the noise in the band that the signal
    occupies, dB.

    The floor of the frame's own spectrum is the noise, what stands above it the signal, and the band is as wide as a
    rectangle of the signal's shape: (∫S)² / ∫S². For root-raised-cosine pulses that is the symbol rate times
    1 / (1 − roll-off / 4), so that this is Es/N0 less .4 dB at a roll-off of .35.

    It is right where there is noise beside the signal in the band, from about 0 dB on; a line narrower than a bin (one
    64th of the sample rate) has the bin as its band. A signal that fills the band, as at one or two samples a symbol,
    leaves nothing to measure noise by.

    Args:
        frames: complex64 [n, length].
        per_symbol: samples of a symbol, where that is known: the answer is Es/N0 then.

    Returns: [n] in dB; NaN where nothing can be said: less than a fifth of the bins are noise, or no signal stands
        above it.
    """
    signal, noise, width = signal_and_noise(frames)
    ratio = signal / (noise * (width if per_symbol is None else 1 / per_symbol))
    return torch.where(ratio > 0, 10 * ratio.clamp(min=1e-12).log10(), torch.nan)


def signal_and_noise(frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return power of the signal and of the noise per sample, and the width of the band, in cycles per sample: [n]
    each.

    NaN where nothing can be said.
    """
    if frames.shape[-1] < SHORTEST:
        nothing = torch.full((len(frames),), torch.nan)
        return nothing, nothing, nothing
    spectra = averaged(frames, FRAME_BINS)
    windows = windows_of(frames.shape[-1], FRAME_BINS)
    noise, share = noise_floor(spectra, windows)
    excess = spectra - noise.unsqueeze(-1)
    # Where the signal is: above the floor's own scatter; its skirts below that are little.
    is_signal = excess > noise.unsqueeze(-1) * (DEVIATIONS / math.sqrt(windows))
    excess = excess * is_signal
    total, squares = excess.sum(-1), excess.square().sum(-1)
    # A bin that holds signal holds noise, too, whose scatter widens (∫S)² / ∫S² by nothing on average.
    width = (total.square() / squares.clamp(min=1e-30)).clamp(min=1.0) / FRAME_BINS
    # A bin of noise beyond four deviations is no signal: together eight at least.
    sure = total > noise * (2 * DEVIATIONS / math.sqrt(windows))
    good = (share >= LEAST_QUIET) & sure & (noise > 0)
    nan = torch.full_like(total, torch.nan)
    return torch.where(good, total / FRAME_BINS, nan), torch.where(good, noise, nan), torch.where(good, width, nan)


@dataclass(frozen=True)
class Band:
    """What is occupied of a recording's band.

    Args:
        lower: edge, cycles per sample.
        upper: edge.
        power: of the signal per sample.
        noise: of the noise per sample, over the whole band.
        quiet: share of the band that is noise alone.
        share: how much of all that stands above the noise lies within the edges; well below 1 where there are several
            signals.
    """

    lower: float
    upper: float
    power: float
    noise: float
    quiet: float
    share: float = 1.0

    @property
    def width(self) -> float:
        return self.upper - self.lower

    @property
    def centre(self) -> float:
        return (self.lower + self.upper) / 2

    @property
    def snr(self) -> float:
        """Signal over the noise within the edges, dB; −∞ without signal."""
        ratio = self.power / (self.noise * self.width) if self.noise and self.width else 0.0
        return 10 * math.log10(ratio) if ratio > 0 else -math.inf


def occupied_band(spectrum: Tensor, windows: float) -> Band | None:
    """Return the band around the strongest part of a spectrum, down to a tenth of its level; None where all is noise,
    or where no noise is left to tell it from.

    Args:
        spectrum: [bins], averaged.
        windows: independent windows of it.
    """
    spectrum = spectrum.double()
    bins = len(spectrum)
    # A line without noise stands in the window's sidelobes and in the rounding of its own samples: no floor either.
    spectrum = spectrum.clamp(min=DEEPEST * float(spectrum.max()))
    noise, quiet = (float(value) for value in noise_floor(spectrum, windows))
    if quiet < LEAST_QUIET or noise <= 0:
        return None
    # Four deviations in one of a thousand bins are nothing: six, and two bins side by side.
    excess = spectrum - noise - leakage(spectrum)
    least = 6 * noise / math.sqrt(windows)
    strong = excess > least
    both = strong & (strong.roll(1) | strong.roll(-1))
    if not bool(both.any()):
        return None
    # A line stands far above what it stands in: the level is that of the broad part, the band that holds the power.
    level = float((excess * both).square().sum() / (excess * both).sum())
    place = int((excess * both).argmax())
    inside = (excess > max(EDGE * min(level, float(excess[both].quantile(0.75))), least)).tolist()
    # A notch of a few bins does not end the band.
    gap = max(bins // 128, 2)
    low = high = place
    while any(inside[max(low - gap, 0) : low]):
        low = next(i for i in range(max(low - gap, 0), low) if inside[i])
    while any(inside[high + 1 : high + 1 + gap]):
        high = next(i for i in range(min(high + gap, bins - 1), high, -1) if inside[i])
    power = float(excess[low : high + 1].sum()) / bins
    share = min(power * bins / float((excess * both).sum()), 1.0)
    return Band((low - bins / 2 - 0.5) / bins, (high - bins / 2 + 0.5) / bins, power, noise, quiet, share)


def leakage(spectrum: Tensor) -> Tensor:
    """Return what the strongest bin, were it a line, would leave in the others by Hann's window: no band of a signal.

    The window's transform k bins off is sinc(k) / (1 − k²), in magnitude at most 1 / (π k (k² − 1)); a line halfway
    between two bins is half a bin nearer, and stands 1.4 dB lower. Of a band as wide as a few bins it takes per mille.

    Args:
        spectrum: float64 [bins].
    """
    bins, place = len(spectrum), int(spectrum.argmax())
    away = (torch.arange(bins) - place).abs()
    away = torch.minimum(away, bins - away).double() - 0.5
    found = 1.39 / (math.pi * away * (away.square() - 1)).square()
    return torch.where(away > 1, found * spectrum[place], 0.0)


@dataclass(frozen=True)
class CyclicLine:
    """A line in the spectrum of |x|²: symbols at its frequency.

    Args:
        rate: symbols per sample.
        above: the line over the mean of what is around it, dB.
        chance: that noise alone would make one as strong anywhere in the range that was searched.
    """

    rate: float
    above: float
    chance: float


def symbol_rate(samples: Tensor, band: Band) -> CyclicLine | None:
    """Return the symbol rate of linear modulations, as the strongest line of |x|² where it can be for such a band.

    Pulses with excess bandwidth make the power of a signal rise and fall once a symbol (Gardner and others: its second
    cyclic moment). A constant envelope (FM, MSK) has no such line, nor has a roll-off near 0.

    Args:
        samples: complex64 [n]; the first million counts.
        band: what is occupied.

    Returns: None where no line stands out: chance above one in ten thousand.
    """
    samples = samples[:MOST_CYCLIC]
    count = len(samples)
    # (1 + roll-off) / width, the edges at a tenth of the level: between half and all of it.
    low, high = max(int(0.5 * band.width * count), 8), min(int(1.15 * band.width * count), count // 2)
    if high - low < 64:
        return None
    # The band alone: noise beside it adds to |x|² and not to the line. Bins outside of it, and a little, are left out.
    spectrum = torch.fft.fft(samples.to(torch.complex64))
    frequency = torch.fft.fftfreq(count)
    spectrum[(frequency - band.centre).abs() > 0.6 * band.width + 2 / count] = 0
    power = torch.view_as_real(torch.fft.ifft(spectrum)).square().sum(-1)
    lines = torch.fft.rfft(power - power.mean()).abs().square()[low:high].double()
    # What is around the line falls with its frequency: held against its own neighbourhood.
    size = max((high - low) // 16, 16)
    padded = torch.nn.functional.pad(
        lines[None, None], (size, size), mode="reflect" if size < len(lines) else "replicate"
    )
    around = torch.nn.functional.avg_pool1d(padded, 2 * size + 1, stride=1)[0, 0]
    ratio = lines / around
    place = int(ratio.argmax())
    # The line's own power lies in its neighbourhood: the rest of it is the mean of what it stands in.
    rest = (around[place] * (2 * size + 1) - lines[place]) / (2 * size)
    strength = float(lines[place] / rest.clamp(min=1e-300))
    chance = min(1.0, (high - low) * math.exp(-min(strength, 700.0)))
    if chance > 1e-4:
        return None
    return CyclicLine((low + place) / count, 10 * math.log10(strength), chance)
