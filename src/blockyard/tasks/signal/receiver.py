"""A blind receiver without weights: the band of a frame, its symbol rate, and the symbols read at their instants.

    band       the averaged spectrum above its noise floor: its middle f_c, and √12 times its deviation as width W
    symbols    the line of |y|² nearest W is the symbol rate, its phase the timing (Oerder and Meyr 1988); a root-raised
               cosine of that rate filters the frame, and a cubic reads it at the instants
    carrier    the line of z⁴ or z⁸ of the symbols is four or eight times what is left of the carrier's offset

For signals without symbols the numbers mean less, but they are the same function of the frame: a model learns what they
come to. All is computed per frame, by FFTs of many frames at once, in the dtype of the samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from blockyard.tasks.signal.waveforms import cubic, root_raised_cosine_spectrum

# Bins that are averaged into one where the band is looked for, and how far above the floor it stands.
POOL, ABOVE = 16, 2.0
# Roll-off of the receiver's filter: the middle of what is usual.
ROLLOFF = 0.35
# Widths of a band as shares of the sample rate: narrower ones are lines.
LEAST, MOST = 0.03, 0.6
# Symbols that are read of a frame; a frame with fewer is read again from its beginning.
SYMBOLS = 256


@dataclass(frozen=True)
class Received:
    """What the receiver makes of frames [n, length].

    Args:
        spectrum: [n, length], power of each frequency, from −1/2 up, of a frame of unit power.
        centre: [n, 1], middle of the band, cycles per sample.
        width: [n, 1], of the band.
        filtered: complex [n, length], the band around 0.
        rate: [n, 1], symbols per sample.
        line: [n, 1], how strong the line is that says the symbol rate, from 0 to 1.
        symbols: complex [n, K], unit mean power; K is `SYMBOLS`, or how many there are where that is known.
        count: [n, 1], how many of them are of the frame and no repetition.
        lines: [n, 4, K], magnitudes of the spectra of z, z², z⁴ and z⁸ over the symbols, mean of |z|^m as 1.
        frequency: [n, 1], cycles per symbol that the carrier turns on.
        turn: [n, 1], radians by which the points are turned from the nearest upright position.
    """

    spectrum: Tensor
    centre: Tensor
    width: Tensor
    filtered: Tensor
    rate: Tensor
    line: Tensor
    symbols: Tensor
    count: Tensor
    lines: Tensor
    frequency: Tensor
    turn: Tensor

    def upright(self, *, keep_phase: bool) -> Tensor:
        """Return the symbols with what is left of the carrier's offset taken out, and with the turn unless
        `keep_phase`."""
        place = torch.arange(self.symbols.shape[1], dtype=self.rate.dtype) % self.count
        angle = -2 * math.pi * self.frequency * place
        return self.symbols * unit(angle if keep_phase else angle - self.turn)


def unit(angle: Tensor) -> Tensor:
    """Return exp(i angle)."""
    return torch.polar(torch.ones_like(angle), angle)


def receive(x: Tensor, samples_per_symbol: int = 0) -> Received:
    """Receive frames, blindly unless the symbol rate is known.

    Args:
        x: complex [n, length], of unit mean power.
        samples_per_symbol: where it is known, and that the carrier lies at 0; phase and timing are found still.
    """
    n, length = x.shape
    many = length // samples_per_symbol if samples_per_symbol else SYMBOLS
    bins = torch.fft.fftshift(torch.fft.fft(x), dim=1)
    spectrum = power(bins) / length
    centre, width = band(spectrum)
    if samples_per_symbol:
        centre, width = torch.zeros_like(centre), torch.full_like(width, 1 / samples_per_symbol)
    # The band moved to 0, by whole bins; what lies beyond 0.75 W on either side is noise.
    middle = (centre * length).round()
    place = torch.arange(length) - length // 2
    moved = bins.gather(1, (place + middle.long() + length // 2) % length)
    centre = middle / length
    frequency = place.to(spectrum.dtype) / length
    y = torch.fft.ifft(torch.fft.ifftshift(moved * (frequency.abs() <= 0.75 * width), dim=1))
    if samples_per_symbol:
        rate, line, timing = known_rate(power(y), samples_per_symbol)
    else:
        rate, line, timing = symbol_rate(power(y), width)
    matched = moved * root_raised_cosine_spectrum(frequency / rate, torch.full_like(rate, ROLLOFF))
    # Twice as many samples, between which a cubic is right to −50 dB.
    wide = torch.zeros(n, 2 * length, dtype=x.dtype)
    half = length // 2
    wide[:, :half], wide[:, -half:] = matched[:, half : 2 * half], matched[:, :half]
    fine = torch.fft.ifft(wide)
    # A symbol's distance from both ends of the frame, where its pulse is cut.
    count = torch.full_like(rate, many) if samples_per_symbol else ((length - 1 - timing) * rate).floor().clamp(8, many)
    instants = timing + (torch.arange(many, dtype=rate.dtype) % count) / rate
    z = cubic(fine, 2 * instants)
    inside = torch.arange(many) < count
    z = z / ((power(z) * inside).sum(1, keepdim=True) / count).clamp(min=1e-20).sqrt()
    lines, carrier, turned = carriers(z, inside, count, known=bool(samples_per_symbol))
    return Received(spectrum, centre, width, y, rate, line, z, count, lines, carrier, turned)


def power(x: Tensor) -> Tensor:
    """Compute |x|², without the root that abs() takes."""
    return torch.view_as_real(x.resolve_conj()).square().sum(-1)


def band(spectrum: Tensor) -> tuple[Tensor, Tensor]:
    """Return middle and width of what stands above the noise floor, [n, 1] each, in cycles per sample."""
    length = spectrum.shape[1]
    pool = POOL if length >= 32 * POOL else 1
    pooled = spectrum[:, : length // pool * pool].unflatten(1, (-1, pool)).mean(2)
    floor = pooled.sort(dim=1).values[:, : max(1, pooled.shape[1] // 4)].mean(1, keepdim=True)
    above = (pooled - ABOVE * floor).clamp(min=0)
    # A line (a carrier) counts for no more than twice what the others do: it says nothing of the width.
    held = (above > 0).sum(1, keepdim=True).clamp(min=1)
    above = above.minimum(2 * (above.sqrt().sum(1, keepdim=True) / held).square())
    # Where nothing stands above, all of it.
    above = torch.where(above.sum(1, keepdim=True) > 0, above, pooled)
    place = (torch.arange(pooled.shape[1]) + 0.5) * pool / length - 0.5
    # A frame of zeros has its band at 0.
    share = above / above.sum(1, keepdim=True).clamp(min=1e-30)
    centre = (share * place).sum(1, keepdim=True)
    spread = (share * (place - centre).square()).sum(1, keepdim=True).sqrt()
    return centre, (12**0.5 * spread).clamp(LEAST, MOST)


def symbol_rate(envelope: Tensor, width: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the line of the squared envelope nearest the width of the band.

    Returns: its frequency, how strong it is (twice its amplitude over the mean), and the first sample at which it is at
        its top, [n, 1] each.
    """
    length = envelope.shape[1]
    level = envelope.mean(1, keepdim=True)
    flat = envelope - level
    lines = power(torch.fft.rfft(flat))
    place = torch.arange(lines.shape[1])
    likely = (place >= 0.5 * width * length) & (place <= 1.5 * width * length)
    top = (lines * likely).argmax(1, keepdim=True).clamp(1, lines.shape[1] - 2)
    # Parts of a bin from the parabola through the neighbours, then from the phases of the two halves of the frame.
    left, middle, right = (lines.gather(1, top + step).clamp(min=1e-20).log() for step in (-1, 0, 1))
    bend = (left - 2 * middle + right).clamp(max=-1e-3)
    frequency = (top + (0.5 * (left - right) / bend).clamp(-0.5, 0.5)) / length
    time = torch.arange(length, dtype=envelope.dtype)
    half = length // 2
    turned = torch.view_as_real(flat * unit(-2 * math.pi * frequency * time))
    first, second = turned[:, :half].sum(1), turned[:, half : 2 * half].sum(1)
    real = (first * second).sum(1, keepdim=True)
    imaginary = first[:, :1] * second[:, 1:] - first[:, 1:] * second[:, :1]
    change = torch.atan2(imaginary, real)
    frequency = (frequency + change / (2 * math.pi * half)).clamp(min=4 / length)
    whole = first + second
    angle = torch.atan2(whole[:, 1:], whole[:, :1])
    strength = 2 * whole.square().sum(1, keepdim=True).sqrt() / (length * level).clamp(min=1e-20)
    # Between halves the phase moves by `change`; so it does from the first sample to the middle.
    angle = angle - change
    timing = (-angle / (2 * math.pi * frequency)) % (1 / frequency)
    return frequency, strength, timing


def known_rate(envelope: Tensor, samples_per_symbol: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same for a symbol rate that is known: what is left to find is the first top of its line."""
    time = torch.arange(envelope.shape[1], dtype=envelope.dtype)
    whole = (envelope * unit(-2 * math.pi / samples_per_symbol * time)).sum(1, keepdim=True)
    strength = 2 * power(whole).sqrt() / envelope.sum(1, keepdim=True).clamp(min=1e-20)
    timing = (-torch.atan2(whole.imag, whole.real) / (2 * math.pi) % 1.0) * samples_per_symbol
    return torch.full_like(strength, 1 / samples_per_symbol), strength, timing


def carriers(z: Tensor, inside: Tensor, count: Tensor, *, known: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return lines of powers of the symbols, and what they say of the carrier.

    Args:
        z: complex [n, K].
        inside: [n, K], which of them are no repetitions.
        count: [n, 1], how many.
        known: whether the carrier is known to lie at 0.

    Returns: magnitudes [n, 4, K] for z, z², z⁴ and z⁸; offset in cycles per symbol and turn in radians, [n, 1].
    """
    many = z.shape[1]
    # Powers of the direction alone, weighted by the magnitude: |z|^8 would leave the word to the largest symbol.
    size = power(z).sqrt().clamp(min=1e-6)
    way, found = z / size, []
    for doublings in range(4):
        if doublings:
            way = way * way
        weight = size * inside
        scale = weight.sum(1, keepdim=True)
        found.append(torch.fft.fft(way * weight) / scale)
    lines = torch.stack(found, dim=1)
    strength = torch.view_as_real(lines).square().sum(-1).sqrt()
    best = strength[:, :, 0] if known else strength.amax(2)
    eighth = (best[:, 2] < 0.8 * best[:, 3]).unsqueeze(1)
    order = torch.where(eighth, 8.0, 4.0)
    chosen = torch.where(eighth, lines[:, 3], lines[:, 2])
    size = torch.where(eighth, strength[:, 3], strength[:, 2])
    top = torch.zeros_like(count, dtype=torch.long) if known else size.argmax(1, keepdim=True)
    around = [size.gather(1, (top + step) % many) for step in (-1, 0, 1)]
    bend = (around[0] - 2 * around[1] + around[2]).clamp(max=-1e-6)
    part = (0.5 * (around[0] - around[2]) / bend).clamp(-0.5, 0.5) * (not known)
    turned = torch.view_as_real(chosen.gather(1, top))
    angle = torch.atan2(turned[..., 1], turned[..., 0])
    cycles = (top + part) / many
    cycles = torch.where(cycles > 0.5, cycles - 1, cycles)
    # The phase of a line between two bins is that at the middle of the symbols; taken back to the first.
    angle = angle - math.pi * part * (count - 1) / many
    return strength, cycles / order, angle / order
