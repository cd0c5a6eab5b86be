"""Signals as a receiver finds them: every frame with a symbol rate, pulse, channel, carrier and faults of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from blockyard.tasks.signal.channel import ECHO, imbalance, multipath, turn
from blockyard.tasks.signal.kinds import KINDS, Kind
from blockyard.tasks.signal.modulations import constellation
from blockyard.tasks.signal.waveforms import (
    chirp,
    continuous_phase,
    grid_symbols,
    linear,
    log_uniform,
    message,
    ofdm,
    tones,
    uniform,
)

if TYPE_CHECKING:
    from blockyard.tasks.signal.config import SignalDataConfig

# Analogue messages reach up to these shares of the sample rate.
AUDIO = (0.01, 0.2)
# Bandwidths of wide kinds, as shares of the sample rate.
BAND = (0.06, 0.4)


class BlindSignals:
    """Frames of kinds of signals through random channels and receivers.

    Args:
        config: the ranges that everything is drawn from.
        kinds: what is sent, by name; the configuration's classes when not given.
    """

    def __init__(self, config: SignalDataConfig, kinds: Sequence[str] = ()) -> None:
        self.config = config
        self.kinds = tuple(kinds) or config.classes
        self._linear = {
            number: constellation(name).to(torch.complex64)
            for number, name in enumerate(self.kinds)
            if KINDS[name].family == "linear"
        }

    def generate(
        self, modulation: Tensor, snr: Tensor, generator: torch.Generator, *, phase: float | None = None
    ) -> Tensor:
        """Return frames of some kinds, complex64 [n, length]; noise is at `snr` in the band of a symbol.

        Args:
            modulation: [n], numbers of the kinds.
            snr: [n] in dB: Es/N0; for signals without symbols the power over that of the noise within their bandwidth.
            generator: source of all randomness.
            phase: largest phase offset instead of the configuration's.
        """
        c, n = self.config, len(modulation)
        sps = log_uniform(n, *c.samples_per_symbol_range, generator)
        x, width = self._sent(modulation, sps, generator)
        spread = c.delay_spread * torch.rand(n, 1, generator=generator)
        if c.fading != "none" and c.delay_spread:
            x = multipath(x, sps, c.paths, spread, c.fading == "rician", generator)
        else:
            x = x[:, ECHO:]
        angle, offset = (2 * torch.rand(2, n, 1, generator=generator) - 1).unbind(0)
        walk = c.phase_noise * torch.rand(n, 1, generator=generator)
        x = turn(x, (c.phase if phase is None else phase) * angle, c.frequency * offset, walk, generator)
        # The power of a symbol's noise in every sample: N0 = Es / SNR, Es = samples per symbol at unit power.
        deviation = 10 ** (-snr.unsqueeze(1) / 20) / width.sqrt()
        silent = torch.tensor([KINDS[name].family == "noise" for name in self.kinds])[modulation].unsqueeze(1)
        deviation = torch.where(silent, torch.ones_like(deviation), deviation)
        x = x + deviation * torch.randn(x.shape, generator=generator, dtype=torch.complex64)
        return self._received(x, generator)

    def _received(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Add the receiver's own faults."""
        c, n = self.config, len(x)
        gain, skew = (2 * torch.rand(2, n, 1, generator=generator) - 1).unbind(0)
        if c.iq_gain or c.iq_phase:
            x = imbalance(x, c.iq_gain * gain, c.iq_phase * skew)
        level = x.abs().square().mean(1, keepdim=True).sqrt()
        leak = torch.polar(c.dc * torch.rand(n, 1, generator=generator), uniform(n, 0, 2 * math.pi, generator))
        return x + level * leak

    def _sent(self, modulation: Tensor, sps: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return signals of unit power before the channel, [n, ECHO + length], and the bandwidth of each, [n, 1]."""
        c, n = self.config, len(modulation)
        late = c.timing * torch.rand(n, 1, generator=generator)
        drift = 1 + 1e-6 * c.clock * (2 * torch.rand(n, 1, generator=generator) - 1)
        time = torch.arange(ECHO + c.length, dtype=torch.float32)
        instants = time * (drift / sps) + late
        x = torch.zeros(n, ECHO + c.length, dtype=torch.complex64)
        width = 1 / sps
        families = [KINDS[name].family for name in self.kinds]
        for family in dict.fromkeys(families):
            wanted = torch.tensor([f == family for f in families])[modulation]
            rows = wanted.nonzero().squeeze(1)
            if family == "noise" or not len(rows):
                continue
            which = [KINDS[self.kinds[m]] for m in modulation[rows].tolist()]
            if family == "linear":
                x[rows] = self._linear_frames(modulation[rows], instants[rows], generator)
            elif family == "continuous":
                x[rows] = keyed(which, instants[rows], generator)
            else:
                x[rows], width[rows] = other(family, which, time, sps[rows], generator)
        return x, width

    def _linear_frames(self, modulation: Tensor, instants: Tensor, generator: torch.Generator) -> Tensor:
        c, n, count = self.config, len(modulation), grid_symbols(instants)
        share = torch.rand(n, count, generator=generator)
        symbols = torch.zeros(n, count, dtype=torch.complex64)
        for number, points in self._linear.items():
            rows = modulation == number
            symbols[rows] = points[(share[rows] * len(points)).long().clamp_(max=len(points) - 1)]
        return linear(symbols, instants, uniform(n, *c.rolloff_range, generator))


def keyed(kinds: Sequence[Kind], instants: Tensor, generator: torch.Generator) -> Tensor:
    """Return frequency-keyed symbols of continuous phase, with an index drawn from each kind's range."""
    n, count = len(kinds), grid_symbols(instants)
    levels = torch.tensor([float(kind.levels) for kind in kinds]).unsqueeze(1)
    drawn = 2 * (torch.rand(n, count, generator=generator) * levels).floor().clamp(max=levels - 1) - (levels - 1)
    spread = torch.rand(2, n, 1, generator=generator)
    low, high = torch.tensor([kind.index for kind in kinds]).unsqueeze(-1).unbind(1)
    index = low + (high - low) * spread[0]
    low, high = torch.tensor([kind.bt or (torch.inf, torch.inf) for kind in kinds]).unsqueeze(-1).unbind(1)
    bt = torch.where(low.isinf(), low, low + (high - low).nan_to_num() * spread[1])
    return continuous_phase(drawn, instants, index, bt)


def other(
    family: str, kinds: Sequence[Kind], time: Tensor, sps: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return signals without symbols of their own, and their bandwidths as shares of the sample rate.

    Args:
        family: of all of them.
        kinds: one for each frame.
        time: [m], samples.
        sps: [n, 1]; where a signal has no bandwidth (a carrier), its noise is counted in that of such symbols.
    """
    n, m = len(kinds), len(time)
    if family == "am":
        high = log_uniform(n, *AUDIO, generator)
        m_t = message(n, m, 0.1 * high, high, generator).real
        depth = uniform(n, 0.3, 1.0, generator) / m_t.abs().amax(1, keepdim=True)
        carrier = torch.tensor([0.0 if kind.suppressed else 1.0 for kind in kinds]).unsqueeze(1)
        found = (carrier + depth * m_t).to(torch.complex64)
        return _unit(found), 2 * high
    if family == "ssb":
        high = log_uniform(n, 3 * AUDIO[0], AUDIO[1], generator)
        low = 0.1 * high * torch.rand(n, 1, generator=generator)
        found = message(n, m, low, high, generator)
        lower = torch.rand(n, 1, generator=generator) < 0.5
        return _unit(torch.where(lower, found.conj(), found)), high - low
    if family == "fm":
        high = log_uniform(n, 0.004, 0.1, generator)
        # From a wide band of messages, as speech has it, to nearly a single note.
        low = high * uniform(n, 0.0, 0.97, generator).square()
        m_t = message(n, m, low, high, generator).real
        # Carson's rule, with a peak of twice the deviation; narrow FM has a deviation far below the message's band.
        reach = log_uniform(n, 0.004, 0.08, generator)
        band = 2 * (2 * reach + high)
        angle = 2 * math.pi * (reach * m_t).double().cumsum(1)
        return torch.polar(torch.ones_like(m_t), angle.float()), band
    if family == "ofdm":
        carriers = uniform(n, 12, 63, generator).round()
        band = log_uniform(n, 0.1, BAND[1], generator)
        prefix = torch.tensor([1 / 16, 1 / 8, 1 / 4])[torch.randint(3, (n, 1), generator=generator)]
        instants = time * (band / carriers) + 2 * torch.rand(n, 1, generator=generator)
        dense = torch.rand(n, 1, generator=generator) < 0.5
        four, sixteen = constellation("qpsk").repeat(4), constellation("16qam")
        points = torch.where(dense, sixteen, four).to(torch.complex64)
        return ofdm(instants, carriers, prefix, points, generator), band
    frequency = uniform(n, -0.25, 0.25, generator)
    if family == "tone":
        # Half of them are where a receiver is tuned to, but for the carrier offset.
        near = torch.rand(n, 1, generator=generator) < 0.5
        return tones(time.expand(n, m), frequency.masked_fill(near, 0.0), torch.zeros(n, 1)), 1 / sps
    if family == "tones":
        spread = frequency + uniform(n, 0.01, 0.1, generator) * (torch.rand(n, 5, generator=generator) - 0.5)
        return tones(time.expand(n, m), spread, 2 * math.pi * torch.rand(n, 5, generator=generator)), 1 / sps
    if family == "chirp":
        reach = uniform(n, 0.03, 0.2, generator)
        start = 1000 * torch.rand(n, 1, generator=generator)
        return chirp(time + start, reach, log_uniform(n, 100, 1000, generator)), 2 * reach
    period = log_uniform(n, 40, 300, generator)
    gate = ((time + 300 * torch.rand(n, 1, generator=generator)) / period % 1.0) < uniform(n, 0.1, 0.5, generator)
    return _unit(gate * tones(time.expand(n, m), 0.2 * frequency, torch.zeros(n, 1))), 1 / sps


def _unit(x: Tensor) -> Tensor:
    return x / x.abs().square().mean(1, keepdim=True).sqrt().clamp(min=1e-12)
