"""Signals by their definitions, in loops and float64: slow, and so short that they are obviously right."""

from __future__ import annotations

import cmath
import math


def pulse(t, rolloff):
    """The root-raised cosine of unit energy at time t, in symbols."""
    if abs(t) < 1e-9:
        return 1 - rolloff + 4 * rolloff / math.pi
    if abs(abs(4 * rolloff * t) - 1) < 1e-9:
        a = math.pi / (4 * rolloff)
        return rolloff / 2**0.5 * ((1 + 2 / math.pi) * math.sin(a) + (1 - 2 / math.pi) * math.cos(a))
    top = math.sin(math.pi * t * (1 - rolloff)) + 4 * rolloff * t * math.cos(math.pi * t * (1 + rolloff))
    return top / (math.pi * t * (1 - (4 * rolloff * t) ** 2))


def linear(symbols, instants, rolloff, first):
    """Σ_k s_k p(t − k); `symbols[first]` stands at 0."""
    return [sum(s * pulse(t - (k - first), rolloff) for k, s in enumerate(symbols)) for t in instants]


def keyed(levels, instants, index, bt, first):
    """exp(iφ), φ(t) = πh ∫ Σ_k a_k g(u − k) du from −first by a fine sum: g a symbol long, smoothed by a Gaussian."""

    def frequency(u):
        if math.isinf(bt):
            k = math.floor(u) + first
            return levels[k] if 0 <= k < len(levels) else 0.0
        sigma = math.sqrt(math.log(2)) / (2 * math.pi * bt)
        total = 0.0
        for k, a in enumerate(levels):
            at = u - (k - first)
            if -4 < at < 5:
                total += a * 0.5 * (math.erf(at / sigma / 2**0.5) - math.erf((at - 1) / sigma / 2**0.5))
        return total

    fine, out, angle, at = 64, [], 0.0, -float(first)
    for t in instants:
        count = max(1, math.ceil((t - at) * fine))
        step = (t - at) / count
        for n in range(count):
            angle += math.pi * index * frequency(at + (n + 0.5) * step) * step
        at = t
        out.append(cmath.exp(1j * angle))
    return out


def matched(frame, late, samples_per_symbol, rolloff, reach=16):
    """Outputs of the matched filter of a frame that repeats: a sum over pulses that reach around its ends."""
    length = len(frame)
    count = length // samples_per_symbol
    out = []
    for n in range(count):
        total = 0j
        for m in range((n - reach) * samples_per_symbol, (n + reach) * samples_per_symbol):
            total += frame[m % length] * pulse(m / samples_per_symbol + late - n, rolloff)
        out.append(total / samples_per_symbol)
    return out
