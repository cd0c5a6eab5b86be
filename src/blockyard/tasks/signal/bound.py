"""The maximum-likelihood bound: the accuracy that no classifier of the same frames can exceed, by Monte Carlo.

For symbols in white noise of known variance σ² at one sample per symbol, the likelihood of a modulation is a product
over the samples of a mean over its points, p(y | m) = Π_n mean_s exp(−|y_n − s|² / σ²) / πσ². With equally likely
modulations, choosing the largest is right most often. `coherent` knows the phase; `unknown phase` averages the product
over all phases, and an unknown SNR over its range. Exact but for the number of frames, and cheap: where a constellation
is a product of real and imaginary levels, so is its mean; phases are averaged over one period of the constellation's
symmetry, on a grid as fine as the likelihood is wide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blockyard.errors import InputError, at_least
from blockyard.tasks.signal.config import SignalDataConfig
from blockyard.tasks.signal.generator import SignalGenerator
from blockyard.tasks.signal.modulations import constellation, product_levels, symmetry_order

FRAMES = 20_000
# Samples of one pass: what a processor's cache holds, times the points of a constellation.
_SAMPLES = 1 << 14
# dB below which fine constellations differ in digits of the likelihood that float32 does not keep.
_DOUBLE_BELOW = 0.0


@dataclass(frozen=True)
class Bound:
    """Accuracies of the maximum-likelihood classifier.

    Args:
        snr: dB.
        accuracy: share of right decisions at each SNR.
        confusion: `[SNR][true class][chosen class]`, shares of each true class.
        frames: frames per SNR.
        coherent: whether the phase is known.
        snr_range: dB between which the SNR may lie for all that the classifier knows; None = it is known.
    """

    snr: tuple[float, ...]
    accuracy: tuple[float, ...]
    confusion: tuple[tuple[tuple[float, ...], ...], ...]
    frames: int
    coherent: bool
    snr_range: tuple[float, float] | None = None

    @property
    def standard_error(self) -> tuple[float, ...]:
        """Standard deviation of each accuracy from the number of frames."""
        return tuple((a * (1 - a) / self.frames) ** 0.5 for a in self.accuracy)


def maximum_likelihood_bound(
    classes: Sequence[str],
    length: int,
    snr: Sequence[float],
    *,
    coherent: bool = True,
    snr_range: tuple[float, float] | None = None,
    frames: int = FRAMES,
    seed: int = 0,
    on_snr: Callable[[float, float], None] | None = None,
) -> Bound:
    """Return the accuracy of the maximum-likelihood classifier at one sample per symbol.

    Args:
        classes: modulations, equally likely.
        length: samples per frame.
        snr: dB.
        coherent: the phase is known; else it is drawn evenly from all angles and averaged out.
        snr_range: dB between which the SNR is drawn evenly, which is averaged out too; None = it is known. Takes one
            pass for every half decibel.
        frames: frames per SNR.
        seed: of the frames.
        on_snr: called with (SNR, accuracy) as each is done.
    """
    at_least(1, frames=frames)
    if snr_range is not None and not snr_range[0] <= snr_range[1]:
        raise InputError(f"snr_range={snr_range} should be two numbers of dB, the lower one first")
    config = SignalDataConfig(
        scenario="synchronised", modulations=",".join(classes), length=length, phase=0.0 if coherent else math.pi,
        snr_min=-60, snr_max=100,
    )  # fmt: skip
    source = SignalGenerator(config)
    accuracy, confusion = [], []
    for number, level in enumerate(snr):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        levels = [float(level)] if snr_range is None else _grid(*snr_range)

        def scores(iq: Tensor, levels: Sequence[float] = tuple(levels)) -> Tensor:
            exact = iq.to(torch.complex128)
            found = [
                log_likelihoods(exact if each < _DOUBLE_BELOW else iq, classes, each, coherent=coherent).double()
                for each in levels
            ]
            return torch.stack(found).logsumexp(0)

        right, shares = decisions(source, scores, float(level), frames, max(1, _SAMPLES // length), generator)
        accuracy.append(right)
        confusion.append(shares)
        if on_snr is not None:
            on_snr(float(level), accuracy[-1])
    return Bound(tuple(map(float, snr)), tuple(accuracy), tuple(confusion), frames, coherent, snr_range)


def decisions(
    source: SignalGenerator,
    scores: Callable[[Tensor], Tensor],
    level: float,
    frames: int,
    at_once: int,
    generator: torch.Generator,
) -> tuple[float, tuple[tuple[float, ...], ...]]:
    """Return how often the class of the largest score is right, and what is taken for what.

    Args:
        source: of the frames.
        scores: iq [n, length] -> [n, classes].
        level: SNR of the frames, dB.
        frames: how many.
        at_once: of them scored together, as memory has it.
        generator: what the frames are drawn from.
    """
    classes = len(source.config.classes)
    counts = torch.zeros(classes, classes)
    for start in range(0, frames, at_once):
        n = min(at_once, frames - start)
        drawn = source.generate(n, generator, snr=torch.full((n,), level))
        counts.index_put_((drawn.modulation, scores(drawn.iq).argmax(-1)), torch.ones(n), accumulate=True)
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    return float(counts.diagonal().sum() / frames), tuple(tuple(row) for row in shares.tolist())


def _grid(low: float, high: float) -> list[float]:
    """Return levels at most half a decibel apart: a frame of some hundred samples tells its SNR no more finely than
    that."""
    steps = max(1, math.ceil((high - low) / 0.5))
    return [low + (high - low) * i / steps for i in range(steps + 1)]


def log_likelihoods(iq: Tensor, classes: Sequence[str], snr: float, *, coherent: bool = True) -> Tensor:
    """Return ln p(frame | modulation, SNR), but for N ln π: [n, classes].

    Args:
        iq: [n, length], one sample per symbol, symbols of unit mean power.
        classes: modulations.
        snr: dB.
        coherent: whether the phase is 0, or unknown and averaged over.
    """
    variance = 10 ** (-snr / 10)
    likelihood = _coherent if coherent else _any_phase
    # The width of the noise counts where levels are compared.
    density = iq.shape[-1] * math.log(variance)
    real, imaginary = iq.real.contiguous(), iq.imag.contiguous()
    return torch.stack([likelihood(real, imaginary, name, variance) for name in classes], dim=-1) - density


def _coherent(real: Tensor, imaginary: Tensor, name: str, variance: float) -> Tensor:
    """Sum over the samples [n, length] of ln mean_s exp(−|y − s|² / variance): [n]."""
    levels = product_levels(name)
    if levels is None:
        points = constellation(name)
        distance = _distance(real, points.real) + _distance(imaginary, points.imag)
        return _log_mean(distance, variance).sum(-1)
    # |y − s|² is a sum of two squares, so the mean over a grid is a product of two means.
    parts = [_log_mean(_distance(part, level), variance) for part, level in zip((real, imaginary), levels)]
    return parts[0].add_(parts[1]).sum(-1)


def _distance(y: Tensor, levels: Tensor) -> Tensor:
    """Return (y − l)²: [levels, n, length]; levels lead, so that loops run along the samples."""
    return torch.sub(y, levels.to(y.dtype).view(-1, 1, 1)).square_()


def _log_mean(distance: Tensor, variance: float) -> Tensor:
    """Return ln mean exp(−distance / variance) over the first axis; overwrites the distances."""
    if len(distance) == 1:
        return distance[0].div_(-variance)
    nearest = distance.amin(0)
    mean = distance.sub_(nearest).mul_(-1 / variance).exp_().sum(0).div_(len(distance))
    return mean.log_().sub_(nearest.div_(variance))


def _any_phase(real: Tensor, imaginary: Tensor, name: str, variance: float) -> Tensor:
    """Return ln of the likelihood averaged over the phase: [n]."""
    period = 2 * math.pi / symmetry_order(name)
    # Where the SNR is high the likelihood is a bell over the phase with this standard deviation. The mean over an even
    # grid converges exponentially: steps of one deviation are off by 2 exp(−2π²), a few parts in a billion.
    width = (variance / (2 * real.shape[-1])) ** 0.5
    count = max(16, math.ceil(period / width))
    total = torch.full((real.shape[0],), -torch.inf, dtype=real.dtype)
    for step in range(count):
        angle = period * step / count
        along, across = math.cos(angle), math.sin(angle)
        turned = (real * along).add_(imaginary, alpha=across), (imaginary * along).sub_(real, alpha=across)
        torch.logaddexp(total, _coherent(*turned, name, variance), out=total)
    return total - math.log(count)
