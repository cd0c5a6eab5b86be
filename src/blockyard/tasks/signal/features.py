"""What an engineer would look at: spectra of powers, cumulants, envelope and frequency of a frame, as a vector.

None of it sees the phase of the carrier: magnitudes, and differences of phase.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from blockyard.tasks.signal.receiver import Received, power

Features = Literal["none", "cumulants", "spectra", "all"]
# Points of the spectrum's shape, over three widths of the band; bins of the histograms of magnitudes and of the
# frequency; lines that are kept of a spectrum.
SHAPE, HISTOGRAM, FINE, TOPS = 32, 16, 24, 3
CUMULANTS = 9
# Shape and six numbers of the band; lines of four powers of the symbols, and of four of the samples with their places;
# an echo; histograms.
SPECTRA = SHAPE + 6 + 4 * TOPS + 4 * 2 * TOPS + 3 + 2 * HISTOGRAM + FINE


def width_of(features: Features) -> int:
    """Return how many numbers a vector has."""
    return {"none": 0, "cumulants": CUMULANTS, "spectra": SPECTRA, "all": CUMULANTS + SPECTRA}[features]


def features_of(r: Received, features: Features) -> Tensor:
    """Return the vector of received frames: [n, width_of(features)], each number of the order of 1."""
    parts = []
    if features in ("cumulants", "all"):
        parts.append(cumulants(r))
    if features in ("spectra", "all"):
        parts.append(spectra(r))
    return torch.cat(parts, dim=1)


def cumulants(r: Received) -> Tensor:
    """Return magnitudes of cumulants of the symbols up to the eighth order (Swami and Sadler 2000), with the carrier's
    offset taken out, and the moments of their magnitude: [n, CUMULANTS]."""
    z = r.upright(keep_phase=True)
    inside = (torch.arange(r.symbols.shape[1]) < r.count).to(r.rate.dtype)
    count = r.count.squeeze(1)

    def mean(values: Tensor) -> Tensor:
        return (values * inside).sum(1) / count

    z2 = z * z
    z4, size = z2 * z2, power(z)
    m20, m40, m41, m80 = mean(z2), mean(z4), mean(z2 * size), mean(z4 * z4)
    m21, m42, m63 = mean(size.sqrt()), mean(size.square()), mean(size**3)
    c40, c41, c42 = m40 - 3 * m20 * m20, m41 - 3 * m20, m42 - power(m20) - 2
    c63 = m63 - 9 * m42 + 12
    found = [m20.abs(), m40.abs(), c40.abs(), c41.abs(), m80.abs().clamp(max=20) / 4, m42, c42, c63 / 4, m21]
    return torch.stack(found, dim=1).clamp(-8, 8)


def spectra(r: Received) -> Tensor:
    """Return the spectrum's shape, lines of powers, and histograms of envelope and frequency: [n, SPECTRA]."""
    y, length = r.filtered, r.spectrum.shape[1]
    peak = r.spectrum.amax(1, keepdim=True)
    found = [_shape(r), r.width * 5, r.centre * 10, (peak + 1e-3).log() / 5]
    found += [r.rate / r.width, r.line, r.count / r.symbols.shape[1]]
    found += [_tops(r.lines[:, k], r.count) for k in range(4)]
    size = power(y)
    level = size.mean(1, keepdim=True).clamp(min=1e-20)
    step = y[:, 1:] * y[:, :-1].conj()
    turn = torch.atan2(step.imag, step.real) / (2 * math.pi * r.width)
    # Keyed frequencies are far from their mean but where they change: a line at the symbol rate, which messages lack.
    swing = (turn - turn.mean(1, keepdim=True)).clamp(-1, 1).square()
    swing = torch.nn.functional.pad(swing / swing.mean(1, keepdim=True).clamp(min=1e-20) - 1, (0, 1))
    y = y / level.sqrt()
    for values in (y, y * y, (size / level - 1).to(y.dtype), swing.to(y.dtype)):
        value, place = (power(torch.fft.fft(values)).sqrt() / length).topk(TOPS, dim=1)
        # Where lines lie, in widths of the band from 0.
        away = ((place / length + 0.5) % 1.0 - 0.5).abs() / r.width
        found += [(value + 1e-3).log() / 2, away.clamp(max=4)]
    found.append(_echo(r.spectrum))
    found.append(_histogram((size / level).sqrt(), 0.0, 2.4))
    # Where the envelope is small the frequency is that of the noise.
    found.append(_histogram(turn, -0.75, 0.75, power(step).sqrt(), FINE))
    inside = (torch.arange(r.symbols.shape[1]) < r.count).to(turn.dtype)
    found.append(_histogram(power(r.symbols).sqrt(), 0.0, 2.4, inside))
    return torch.cat(found, dim=1)


def _shape(r: Received) -> Tensor:
    """Return ln of the mean power in even stretches over three widths of the band, by differences of the spectrum's
    sum."""
    length = r.spectrum.shape[1]
    frequency = r.centre + r.width * torch.linspace(-1.5, 1.5, SHAPE)
    total = torch.nn.functional.pad(r.spectrum.cumsum(1), (1, 0))
    edge = 1.5 * r.width / SHAPE
    low, high = (((frequency + sign * edge + 0.5) * length).clamp(0, length) for sign in (-1, 1))
    first = low.floor().long().clamp(max=length - 1)
    last = high.ceil().long().maximum(first + 1)
    return ((total.gather(1, last) - total.gather(1, first)) / (last - first) + 1e-3).log() / 3


def _tops(lines: Tensor, count: Tensor) -> Tensor:
    """Return the largest magnitudes of a spectrum of symbols, over what so many random ones would have."""
    return (lines.topk(TOPS, dim=1).values * count.sqrt() + 1e-3).log() / 2


def _echo(spectrum: Tensor) -> Tensor:
    """Return the largest value of the autocorrelation far from 0, where a cyclic prefix or a period shows, how far, and
    the mean."""
    length = spectrum.shape[1]
    size = power(torch.fft.ifft(torch.fft.ifftshift(spectrum, dim=1))).sqrt()
    far = (size / size[:, :1].clamp(min=1e-20))[:, length // 32 : length // 2]
    value, place = far.max(1, keepdim=True)
    return torch.cat([value * 4, (place + length // 32) / length, far.mean(1, keepdim=True) * 8], dim=1)


def _histogram(values: Tensor, low: float, high: float, weight: Tensor | None = None, bins: int = HISTOGRAM) -> Tensor:
    """Return shares of values in even bins, smoothed linearly so that little changes change little, a quarter as
    mean."""
    place = ((values - low) * ((bins - 1) / (high - low))).clamp(0, bins - 1.001)
    first = place.floor()
    part, index = place - first, first.long()
    weight = torch.ones_like(values) if weight is None else weight
    shares = torch.zeros(len(values), bins, dtype=values.dtype)
    shares.scatter_add_(1, index, (1 - part) * weight)
    shares.scatter_add_(1, index + 1, part * weight)
    return shares * (bins / 4) / weight.sum(1, keepdim=True).clamp(min=1e-20)
