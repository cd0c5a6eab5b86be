"""What an engineer would look at: spectra of powers, cumulants, envelope and frequency of a frame, as a vector.

None of it sees the phase of the carrier: magnitudes, and differences of phase.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from blockyard.tasks.signal.receiver import SYMBOLS, Received, power

Features = Literal["none", "cumulants", "spectra", "all"]
# Points of the spectrum's shape, over three widths of the band; bins of the three histograms; lines of each spectrum.
SHAPE, HISTOGRAM, TOPS = 32, 16, 3
CUMULANTS = 9
# Shape, four numbers of the band; lines of four powers of the symbols and of two of the samples; an echo.
SPECTRA = SHAPE + 6 + 4 * TOPS + 3 * 2 * TOPS + 3 + 3 * HISTOGRAM


def width_of(features: Features) -> int:
    """How many numbers a vector has."""
    return {"none": 0, "cumulants": CUMULANTS, "spectra": SPECTRA, "all": CUMULANTS + SPECTRA}[features]


def features_of(r: Received, features: Features) -> Tensor:
    """The vector of received frames: [n, width_of(features)], each number of the order of 1."""
    parts = []
    if features in ("cumulants", "all"):
        parts.append(cumulants(r))
    if features in ("spectra", "all"):
        parts.append(spectra(r))
    return torch.cat(parts, dim=1)


def cumulants(r: Received) -> Tensor:
    """Magnitudes of cumulants of the symbols up to the eighth order (Swami and Sadler 2000), with the carrier's offset
    taken out, and the moments of their magnitude: [n, CUMULANTS]."""
    z = r.upright(keep_phase=True)
    inside = (torch.arange(SYMBOLS) < r.count).to(z.dtype)

    def mean(values: Tensor) -> Tensor:
        return (values * inside).sum(1) / r.count.squeeze(1)

    z2 = z * z
    m20, m40, m80 = mean(z2), mean(z2 * z2), mean((z2 * z2) * (z2 * z2))
    size = power(z)
    flat = inside.real
    m42, m63 = ((size**k * flat).sum(1) / r.count.squeeze(1) for k in (2, 3))
    m41 = mean(z2 * size)
    c40, c41, c42 = m40 - 3 * m20 * m20, m41 - 3 * m20, m42 - power(m20) - 2
    m21 = (size.sqrt() * flat).sum(1) / r.count.squeeze(1)
    c63 = m63 - 9 * m42 + 12
    found = [m20.abs(), m40.abs(), c40.abs(), c41.abs(), m80.abs().clamp(max=20) / 4, m42, c42, c63 / 4, m21]
    return torch.stack(found, dim=1).clamp(-8, 8)


def spectra(r: Received) -> Tensor:
    """The spectrum's shape, lines of powers, and histograms of envelope and frequency: [n, SPECTRA]."""
    length = r.spectrum.shape[1]
    frequency = r.centre + r.width * torch.linspace(-1.5, 1.5, SHAPE)
    # Means over stretches of the spectrum by differences of its sum, whatever their width.
    total = torch.nn.functional.pad(r.spectrum.cumsum(1), (1, 0))
    edge = 1.5 * r.width / SHAPE
    ends = [((frequency + sign * edge + 0.5) * length).clamp(0, length) for sign in (-1, 1)]
    low, high = ends[0].floor().long(), ends[1].ceil().long()
    high = high.maximum(low + 1).clamp(max=length)
    low = low.minimum(high - 1)
    shape = (total.gather(1, high) - total.gather(1, low)) / (high - low)
    floor = r.spectrum.mean(1, keepdim=True) * 1e-3
    peak = r.spectrum.amax(1, keepdim=True)
    found = [
        (shape + floor).log() / 3,
        (r.width * 5),
        r.centre * 10,
        (peak + floor).log() / 5,
        r.rate / r.width,
        r.line,
    ]
    found.append(r.count / SYMBOLS)
    found += [_tops(r.lines[:, k], r.count) for k in range(4)]
    y = r.filtered
    size = power(y)
    level = size.mean(1, keepdim=True).clamp(min=1e-20)
    y2 = y * y
    for values in (y, y2 / level.sqrt(), (size / level - 1).to(y.dtype)):
        lines = power(torch.fft.fft(values)).sqrt() / (length * level.sqrt())
        value, place = lines.topk(TOPS, dim=1)
        # Where lines lie, in widths of the band from 0.
        away = ((place / length + 0.5) % 1.0 - 0.5).abs() / r.width
        found += [(value + 1e-3).log() / 2, away.clamp(max=4)]
    found.append(_echo(r.spectrum))
    radius = (size / level).sqrt()
    step = y[:, 1:] * y[:, :-1].conj()
    turn = torch.atan2(step.imag, step.real) / (2 * math.pi * r.width)
    found.append(_histogram(radius, 0.0, 2.4))
    # Where the envelope is small the frequency is that of the noise.
    found.append(_histogram(turn, -0.9, 0.9, power(step).sqrt()))
    inside = torch.arange(SYMBOLS) < r.count
    found.append(_histogram(power(r.symbols).sqrt(), 0.0, 2.4, inside.to(radius.dtype)))
    return torch.cat(found, dim=1)


def _tops(lines: Tensor, count: Tensor) -> Tensor:
    """The largest magnitudes of a spectrum of symbols, over what so many random ones would have."""
    value = lines.topk(TOPS, dim=1).values
    return (value * count.sqrt()).log() / 2


def _echo(spectrum: Tensor) -> Tensor:
    """The largest values of the autocorrelation far from 0, where a cyclic prefix or a period shows, and how far."""
    length = spectrum.shape[1]
    size = power(
        torch.fft.ifft(torch.fft.ifftshift(spectrum, dim=1).to(torch.promote_types(spectrum.dtype, torch.cfloat)))
    ).sqrt()
    size = size / size[:, :1].clamp(min=1e-20)
    far = size[:, length // 32 : length // 2]
    value, place = far.max(1, keepdim=True)
    return torch.cat([value * 4, (place + length // 32) / length, far.mean(1, keepdim=True) * 8], dim=1)


def _histogram(values: Tensor, low: float, high: float, weight: Tensor | None = None) -> Tensor:
    """Shares of values in even bins, smoothed linearly so that little changes change little, times the bins."""
    place = ((values - low) * ((HISTOGRAM - 1) / (high - low))).clamp(0, HISTOGRAM - 1.001)
    first = place.floor()
    part = place - first
    index = first.long()
    weight = torch.ones_like(values) if weight is None else weight
    shares = torch.zeros(len(values), HISTOGRAM, dtype=values.dtype)
    shares.scatter_add_(1, index, (1 - part) * weight)
    shares.scatter_add_(1, index + 1, part * weight)
    return shares * (HISTOGRAM / 4) / weight.sum(1, keepdim=True).clamp(min=1e-20)
