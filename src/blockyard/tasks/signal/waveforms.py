"""Waveforms of every kind of signal, many frames at once: unit mean power, at any number of samples per symbol.

    linear       Σ_k s_k p(t − k), root-raised-cosine pulses p of unit energy, made in the frequency domain
    continuous   exp(iφ(t)), φ' = πh Σ_k a_k g(t − k): g a symbol long, or that smoothed by a Gaussian (GFSK, GMSK)
    analogue     of a message, a random process within a band: 1 + μm, m, its upper or lower side band, exp(i∫m)
    OFDM         a sum of carriers, each with points of QPSK or 16QAM, and a cyclic prefix

Symbols stand on a grid of eight instants each, which one FFT per frame fills; samples are read between its instants, by
a cubic for shaped symbols (errors below −50 dB), along straight lines for phases, which are straight where pulses are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Instants per symbol of the grid, and symbols before and after a frame.
OVERSAMPLING, MARGIN = 8, 8


def uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Draw [n, 1] between two bounds."""
    return low + (high - low) * torch.rand(n, 1, generator=generator)


def log_uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Draw [n, 1] between two bounds, evenly in the logarithm."""
    return uniform(n, math.log(low), math.log(high), generator).exp()


def grid_symbols(instants: Tensor) -> int:
    """Return how many symbols frames with these instants need, margins included: a number that FFTs like."""
    wanted = math.ceil(float(instants.max())) + 2 * MARGIN + 1
    return -(-wanted // 16) * 16


def linear(symbols: Tensor, instants: Tensor, rolloff: Tensor) -> Tensor:
    """Return shaped symbols at some instants.

    Args:
        symbols: complex [n, K]; the first `MARGIN` come before the frame.
        instants: [n, length] in symbols from the first one of the frame.
        rolloff: [n, 1].
    """
    n, count = symbols.shape
    # Beyond (1 + rolloff) / 2 of the symbol rate there is nothing.
    reach = math.ceil((1 + float(rolloff.max())) / 2 * count)
    frequency = torch.arange(-reach, reach + 1)
    pulse = root_raised_cosine_spectrum(frequency / count, rolloff)
    spectrum = torch.fft.fft(symbols)[:, frequency % count] * pulse
    wide = torch.zeros(n, OVERSAMPLING * count, dtype=torch.complex64)
    wide[:, frequency % wide.shape[1]] = spectrum
    return cubic(torch.fft.ifft(wide) * OVERSAMPLING, (instants + MARGIN) * OVERSAMPLING)


def root_raised_cosine_spectrum(frequency: Tensor, rolloff: Tensor) -> Tensor:
    """Return the root-raised-cosine pulse of unit energy at frequencies in cycles per symbol: [f], [n, 1] -> [n, f]."""
    beyond = (frequency.abs() - (1 - rolloff) / 2) / rolloff
    return torch.cos(math.pi / 2 * beyond.clamp(0, 1))


def cubic(values: Tensor, at: Tensor) -> Tensor:
    """Return values [n, K] of an even grid read at fractional places [n, m], by Lagrange's cubic through four
    neighbours."""
    first = at.floor()
    u = at - first
    index = first.long()
    weights = (
        -u * (u - 1) * (u - 2) / 6, (u + 1) * (u - 1) * (u - 2) / 2,
        -(u + 1) * u * (u - 2) / 2, (u + 1) * u * (u - 1) / 6,
    )  # fmt: skip
    last = values.shape[1] - 1
    out = torch.zeros(at.shape, dtype=values.dtype)
    for offset, weight in zip((-1, 0, 1, 2), weights):
        out.addcmul_(values.gather(1, (index + offset).clamp_(0, last)), weight.to(values.dtype))
    return out


def continuous_phase(levels: Tensor, instants: Tensor, index: Tensor, bt: Tensor) -> Tensor:
    """Return exp(iφ) of frequency-keyed symbols, of continuous phase.

    Args:
        levels: [n, K], odd numbers; the first `MARGIN` come before the frame.
        instants: [n, length] in symbols.
        index: [n, 1], modulation index h: levels one apart differ by h/2 symbol rates in frequency.
        bt: [n, 1], bandwidth of the Gaussian times the symbol; infinite for none.
    """
    held = levels.repeat_interleave(OVERSAMPLING, dim=1)
    frequency = torch.fft.rfftfreq(held.shape[1]) * OVERSAMPLING
    gaussian = torch.exp(-(math.log(2) / 2) * (frequency / bt).square())
    smooth = torch.fft.irfft(torch.fft.rfft(held) * gaussian, n=held.shape[1])
    # In double: phases of hundreds of symbols add up. At instant m are the m pieces before it.
    phase = (smooth.double().cumsum(1) - smooth) * (math.pi / OVERSAMPLING)
    at = (instants + MARGIN) * OVERSAMPLING
    first = at.floor()
    place = first.long().clamp_(0, held.shape[1] - 2)
    low, high = phase.gather(1, place), phase.gather(1, place + 1)
    angle = index * (low + (high - low) * (at - first))
    return torch.polar(torch.ones_like(instants), angle.float())


def message(n: int, length: int, low: Tensor, high: Tensor, generator: torch.Generator) -> Tensor:
    """Return a random process with all its power between two frequencies, of unit power in every frame, with its
    Hilbert transform as imaginary part: complex64 [n, length].

    Args:
        low: [n, 1], cycles per sample.
        high: likewise.
    """
    size = 1 << (2 * length - 1).bit_length()
    frequency = torch.fft.fftfreq(size)
    # At least one frequency of the grid lies within.
    inside = (frequency >= low.minimum(high - 2 / size)) & (frequency <= high) & (frequency > 0)
    # Messages have less power at high frequencies, some more so than others: from flat to 6 dB per octave.
    tilt = ((frequency / high).clamp(0, 1) + 0.05).pow(-torch.rand(n, 1, generator=generator))
    noise = torch.randn(n, size, generator=generator, dtype=torch.complex64)
    found = torch.fft.ifft(noise * inside * tilt)[:, :length]
    return found / found.real.square().mean(1, keepdim=True).sqrt()


def ofdm(instants: Tensor, carriers: Tensor, prefix: Tensor, points: Tensor, generator: torch.Generator) -> Tensor:
    """Return carriers of equal power with points of their own in every symbol, and a cyclic prefix.

    Args:
        instants: [n, length] in useful symbols (without prefix) from somewhere in the first.
        carriers: [n, 1], at most 64; the middle one is left out.
        prefix: [n, 1], length of the cyclic prefix over that of the useful symbol.
        points: [n, m] complex, of unit mean power, one row for each frame.
    """
    n, size = len(instants), 256
    whole = 1 + prefix
    symbol = (instants / whole).floor()
    count = int(symbol.max()) + 1
    drawn = torch.randint(points.shape[1], (n, count * 64), generator=generator)
    frequency = torch.arange(64) - 32
    inside = (frequency.abs() <= carriers / 2) & (frequency != 0)
    spectrum = torch.zeros(n, count, size, dtype=torch.complex64)
    sent = points.gather(1, drawn).view(n, count, 64) * inside.unsqueeze(1)
    spectrum[..., frequency % size] = sent / inside.sum(1).sqrt()[:, None, None]
    useful = torch.fft.ifft(spectrum) * size
    # A cubic reads beyond the last instant of a symbol: three more of the next turn.
    useful = torch.cat([useful[..., -1:], useful, useful[..., :2]], dim=-1)
    within = (instants - symbol * whole - prefix) % 1.0
    row = symbol * useful.shape[-1] + 1 + within * size
    return cubic(useful.flatten(1), row)


def chirp(time: Tensor, reach: Tensor, period: Tensor) -> Tensor:
    """Return a carrier whose frequency sweeps from −reach to reach (cycles per sample) in every period (samples)."""
    turn = (time / period) % 1.0
    return torch.polar(torch.ones_like(turn), 2 * math.pi * reach * period * (turn.square() - turn))


def tones(time: Tensor, frequency: Tensor, phase: Tensor) -> Tensor:
    """Return the sum of carriers of equal power: time [n, length], frequency and phase [n, tones]."""
    angle = 2 * math.pi * frequency.unsqueeze(-1) * time.unsqueeze(1) + phase.unsqueeze(-1)
    return torch.polar(torch.ones_like(angle), angle).sum(1) / frequency.shape[1] ** 0.5
