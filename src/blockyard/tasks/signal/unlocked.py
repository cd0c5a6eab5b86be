"""The bound where phase and timing are unknown: the likelihood averaged over both, by Monte Carlo.

Frames of the unlocked scenario repeat with their length, so that root-raised-cosine pulses are orthonormal at every
timing τ: the matched filter's outputs z_n(τ) say all that a frame says, and the likelihood of a modulation is

    mean over τ and φ of Π_n mean_s exp((2 Re(s* e^{−iφ} z_n(τ)) − |s|²) / N0)

The mean is taken over an even grid as fine as the likelihood is wide, in two passes: coarse everywhere, and fine where
the coarse one is within e^−25 of its largest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from blockyard.errors import InputError, at_least
from blockyard.tasks.signal.bound import Bound, decisions
from blockyard.tasks.signal.config import SignalDataConfig
from blockyard.tasks.signal.generator import SignalGenerator
from blockyard.tasks.signal.modulations import constellation, product_levels, symmetry_order
from blockyard.tasks.signal.waveforms import root_raised_cosine_spectrum

FRAMES = 2000
# Frames of one pass.
_ROWS = 8


def average_likelihood_bound(
    classes: Sequence[str],
    length: int,
    snr: Sequence[float],
    *,
    samples_per_symbol: int = 4,
    rolloff: float = 0.35,
    frames: int = FRAMES,
    seed: int = 0,
    on_snr: Callable[[float, float], None] | None = None,
) -> Bound:
    """Return the accuracy of the classifier that knows SNR, pulse and symbol rate, and averages over all phases and
    timings.

    Args:
        classes: linear modulations, equally likely.
        length: samples per frame.
        snr: dB (Es/N0).
        samples_per_symbol: of the frames.
        rolloff: of their pulses.
        frames: frames per SNR.
        seed: of the frames.
        on_snr: called with (SNR, accuracy) as each is done.
    """
    at_least(1, frames=frames)
    if length % samples_per_symbol:
        raise InputError(f"length={length} should be a multiple of samples_per_symbol={samples_per_symbol}")
    config = SignalDataConfig(
        scenario="unlocked", modulations=",".join(classes), length=length, samples_per_symbol=samples_per_symbol,
        rolloff=rolloff, snr_min=-60, snr_max=100,
    )  # fmt: skip
    source = SignalGenerator(config)
    accuracy: list[float] = []
    confusion: list[tuple[tuple[float, ...], ...]] = []
    for number, level in enumerate(snr):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        if accuracy and accuracy[-1] == 1 and level > snr[number - 1]:
            # Less noise does no harm.
            accuracy.append(1.0)
            confusion.append(confusion[-1])
            continue

        def scores(iq: Tensor, level: float = float(level)) -> Tensor:
            found = [log_likelihood(iq, name, level, samples_per_symbol, rolloff) for name in classes]
            return torch.stack(found, dim=-1)

        right, shares = decisions(source, scores, float(level), frames, _ROWS, generator)
        accuracy.append(right)
        confusion.append(shares)
        if on_snr is not None:
            on_snr(float(level), accuracy[-1])
    return Bound(tuple(map(float, snr)), tuple(accuracy), tuple(confusion), frames, coherent=False)


def matched(iq: Tensor, late: Tensor, samples_per_symbol: int, rolloff: float) -> Tensor:
    """Return outputs of the matched filter, one per symbol: [n, length], [t] in symbols -> [n, t, symbols]."""
    n, length = iq.shape
    count = length // samples_per_symbol
    reach = min(count, samples_per_symbol * count // 2 - 1)
    frequency = torch.arange(-reach, reach + 1)
    pulse = root_raised_cosine_spectrum(frequency / count, torch.tensor([[rolloff]]))
    # The sum over a symbol's samples, whose energy at unit power they are.
    kept = torch.fft.fft(iq)[:, frequency % length] * pulse / samples_per_symbol
    angle = -2 * math.pi * late.unsqueeze(1) * frequency / count
    turned = kept.unsqueeze(1) * torch.polar(torch.ones_like(angle), angle).to(iq.dtype)
    # Frequencies a symbol rate apart fall together where symbols are read.
    folded = torch.zeros(n, len(late), count, dtype=iq.dtype)
    folded.index_add_(2, frequency % count, turned)
    return torch.fft.ifft(folded)


def log_likelihood(iq: Tensor, name: str, snr: float, samples_per_symbol: int, rolloff: float) -> Tensor:
    """Return ln of a frame's average likelihood over its value for no signal: [n].

    Args:
        iq: complex [n, length].
        name: the modulation.
        snr: dB.
        samples_per_symbol: of the frames.
        rolloff: of their pulses.
    """
    variance = 10 ** (-snr / 10)
    count = iq.shape[1] // samples_per_symbol
    period = 2 * math.pi / symmetry_order(name)
    # Deviations of the likelihood over phase and timing; the pulse's mean square bandwidth is 3.3 / (2π)², about.
    over_phase = (variance / (2 * count)) ** 0.5
    over_time = over_phase / 3.3**0.5
    phases, times = max(16, math.ceil(period / over_phase)), max(8, math.ceil(1 / over_time))
    # Four deviations apart nothing within reach of the largest is missed; small grids are gone through at once.
    step = 4 if phases * times > 4096 else 1
    coarse_phases, coarse_times = -(-phases // step), -(-times // step)
    late = torch.arange(coarse_times) / coarse_times
    turns = period * torch.arange(coarse_phases) / coarse_phases
    found = _grid(matched(iq, late, samples_per_symbol, rolloff), turns, name, variance)
    if step == 1:
        return found.flatten(1).logsumexp(1) - math.log(found[0].numel())
    part = (torch.arange(step) - (step - 1) / 2) / step
    rows = []
    for row, values in enumerate(found):
        near = (values > values.max() - 25).nonzero()
        lates = torch.unique(near[:, 0])
        fine_late = (late[lates].unsqueeze(1) + part / coarse_times).flatten()
        angles = torch.unique(near[:, 1])
        fine_turns = (turns[angles].unsqueeze(1) + period * part / coarse_phases).flatten()
        fine = _grid(matched(iq[row : row + 1], fine_late, samples_per_symbol, rolloff), fine_turns, name, variance)
        rows.append(fine.flatten().logsumexp(0) - math.log(step * step * values.numel()))
    return torch.stack(rows)


def _grid(z: Tensor, turns: Tensor, name: str, variance: float) -> Tensor:
    """Return ln Π_n mean_s exp((2 Re(s* e^{−iφ} z_n) − |s|²) / N0) over timings and phases.

    Shapes: [n, t, symbols], [p] -> [n, t, p].
    """
    levels = product_levels(name)
    found = torch.empty(*z.shape[:2], len(turns), dtype=torch.float64)
    for place, angle in enumerate(turns.tolist()):
        turned = z * complex(math.cos(angle), -math.sin(angle))
        if levels is None:
            points = constellation(name)
            total = _log_mean(turned.real, points.real, turned.imag, points.imag, variance)
        else:
            total = _log_mean(turned.real, levels[0], None, None, variance)
            total = total + _log_mean(turned.imag, levels[1], None, None, variance)
        found[:, :, place] = total.double().sum(-1)
    return found


def _log_mean(x: Tensor, a: Tensor, y: Tensor | None, b: Tensor | None, variance: float) -> Tensor:
    """Return ln mean over points of exp((2 (a x + b y) − a² − b²) / variance)."""
    a = a.to(x.dtype).view(-1, *(1 for _ in x.shape))
    score = 2 * a * x - a * a
    if y is not None and b is not None:
        b = b.to(x.dtype).view_as(a)
        score = score + 2 * b * y - b * b
    return (score / variance).logsumexp(0) - math.log(len(a))
