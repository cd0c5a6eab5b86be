"""What happens to a signal between its modulator and the file: echoes, carrier, noise, and the receiver's faults."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Samples before a frame from which echoes reach into it.
ECHO = 256


def multipath(
    x: Tensor, samples_per_symbol: Tensor, paths: int, spread: Tensor, rician: bool, generator: torch.Generator
) -> Tensor:
    """Put frames through a random channel of a few paths per frame, which leaves the mean power of each frame as it is.

    Path 0 comes first; each further one is half as strong as the one before and late by a time of its own, which is
    exponentially distributed.

    Args:
        x: complex [n, ECHO + length].
        samples_per_symbol: [n, 1].
        paths: how many.
        spread: [n, 1], mean delay of a path beyond the first, in symbols.
        rician: a direct path twice as strong as all scattered ones together; else all are scattered.

    Returns: [n, length].
    """
    n = len(x)
    power = 0.5 ** torch.arange(paths)
    taps = torch.randn(n, paths, generator=generator, dtype=torch.complex64) * (power / power.sum()).sqrt()
    if rician:
        taps = taps * (1 / 3) ** 0.5
        taps[:, 0] += (2 / 3) ** 0.5
    delay = -torch.rand(n, paths, generator=generator).clamp(min=1e-6).log() * spread * samples_per_symbol
    delay[:, 0] = 0
    # An echo from before the stretch would come around its end.
    delay.clamp_(max=ECHO - 8)
    frequency = torch.fft.fftfreq(x.shape[1])
    angle = -2 * math.pi * delay.unsqueeze(-1) * frequency
    response = (taps.unsqueeze(-1) * torch.polar(torch.ones_like(angle), angle)).sum(1)
    heard = torch.fft.ifft(torch.fft.fft(x) * response)[:, ECHO:]
    before = x[:, ECHO:].abs().square().mean(1, keepdim=True)
    after = heard.abs().square().mean(1, keepdim=True).clamp(min=1e-20)
    return heard * (before / after).sqrt()


def turn(x: Tensor, phase: Tensor, frequency: Tensor, walk: Tensor, generator: torch.Generator) -> Tensor:
    """Turn frames by a phase, a carrier offset and a random walk of the phase.

    Args:
        x: complex [n, length].
        phase: [n, 1], radians.
        frequency: [n, 1], cycles per sample.
        walk: [n, 1], deviation of the walk after 1000 samples, radians; all 0 draws none.
    """
    angle = phase + 2 * math.pi * frequency * torch.arange(x.shape[1])
    if bool(walk.any()):
        steps = torch.randn(x.shape, generator=generator) * (walk / 1000**0.5)
        angle = angle + steps.cumsum(1)
    return x * torch.polar(torch.ones_like(angle), angle)


def imbalance(x: Tensor, gain: Tensor, phase: Tensor) -> Tensor:
    """Put frames through a receiver whose Q is louder than its I by a gain (dB) and not quite at right angles to it
    (degrees)."""
    amplitude, skew = 10 ** (gain / 20), phase * (math.pi / 180)
    q = amplitude * (x.imag * torch.cos(skew) + x.real * torch.sin(skew))
    return torch.complex(x.real, q)
