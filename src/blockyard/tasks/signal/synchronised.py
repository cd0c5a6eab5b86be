"""Symbols at a known rate and instant: pulses of whole samples per symbol, and a channel of taps one sample apart."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from blockyard.tasks.signal.waveforms import root_raised_cosine_spectrum

if TYPE_CHECKING:
    from blockyard.tasks.signal.config import SignalDataConfig

# Symbols on either side of one that its pulse reaches.
PULSE_SPAN = 6


def shape(sent: Tensor, c: SignalDataConfig, generator: torch.Generator) -> Tensor:
    """Return pulses, sampled late by a random part of a symbol."""
    n, count = sent.shape
    late = c.timing * torch.rand(n, 1, generator=generator)
    margin = PULSE_SPAN + 1
    # Instants of the samples in symbols, from the first symbol of the frame.
    at = torch.arange(c.length) / c.samples_per_symbol + late
    first = at.floor().long()
    out = torch.zeros(n, c.length, dtype=torch.complex64)
    for offset in range(-PULSE_SPAN, PULSE_SPAN + 1):
        symbol = first + offset
        picked = sent.gather(1, (symbol + margin).clamp(0, count - 1))
        out += picked * root_raised_cosine(at - symbol, c.rolloff)
    return out


def periodic(sent: Tensor, samples_per_symbol: int, late: Tensor, rolloff: float) -> Tensor:
    """Return pulses of symbols that repeat with the frame, whose spectrum ends where the pulse's does: every instant
    sees whole pulses, so that the likelihood of a frame is exactly that of its matched filter's outputs.

    Args:
        sent: complex [n, symbols].
        samples_per_symbol: at least 2.
        late: [n, 1], sampling instants late by so many symbols.
        rolloff: excess bandwidth.
    """
    n, count = sent.shape
    reach = min(count, samples_per_symbol * count // 2 - 1)
    frequency = torch.arange(-reach, reach + 1)
    pulse = root_raised_cosine_spectrum(frequency / count, torch.tensor([[rolloff]]))
    angle = 2 * math.pi * late * frequency / count
    wide = torch.zeros(n, samples_per_symbol * count, dtype=torch.complex64)
    shifted = torch.polar(pulse.expand_as(angle), angle)
    wide[:, frequency % wide.shape[1]] = torch.fft.fft(sent)[:, frequency % count] * shifted
    return torch.fft.ifft(wide) * samples_per_symbol


def fade(x: Tensor, c: SignalDataConfig, generator: torch.Generator) -> Tensor:
    """Put frames through a random channel of a few taps per frame, one sample apart, of unit mean power."""
    if c.fading == "none":
        return x
    power = 0.5 ** torch.arange(c.paths)
    taps = torch.randn(x.shape[0], c.paths, generator=generator, dtype=torch.complex64)
    taps = taps * (power / power.sum()).sqrt()
    if c.fading == "rician":
        # Direct and scattered power as 2 : 1.
        taps = taps * (1 / 3) ** 0.5
        taps[:, 0] += (2 / 3) ** 0.5
    out = taps[:, :1] * x
    for delay in range(1, c.paths):
        # What was sent before the frame is unknown at one sample per symbol: the echo of its end stands in.
        out = out + taps[:, delay : delay + 1] * x.roll(delay, dims=1)
    return out


def root_raised_cosine(t: Tensor, rolloff: float) -> Tensor:
    """Return the root-raised-cosine pulse of unit energy at times t in symbols (Proakis, Digital Communications,
    9.2)."""
    wide = t.double()
    b = rolloff
    numerator = torch.sin(math.pi * wide * (1 - b)) + 4 * b * wide * torch.cos(math.pi * wide * (1 + b))
    denominator = math.pi * wide * (1 - (4 * b * wide).square())
    pulse = numerator / denominator
    # The two removable singularities.
    pulse = torch.where(wide.abs() < 1e-6, 1 - b + 4 * b / math.pi, pulse)
    edge = (b / 2**0.5) * (
        (1 + 2 / math.pi) * math.sin(math.pi / (4 * b)) + (1 - 2 / math.pi) * math.cos(math.pi / (4 * b))
    )
    return torch.where((4 * b * wide.abs() - 1).abs() < 1e-6, edge, pulse).float()
