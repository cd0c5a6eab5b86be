"""Resampling by p/q, block by block: what scipy.signal.resample_poly makes of the whole, to rounding.

Output sample m lies at the time of input sample m·q/p. A block's first and last outputs need inputs from before and
after it, so that a block gives out what the inputs until then decide and keeps a few of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from blockyard.errors import InputError, require
from blockyard.tasks.signal.frontend.spectra import Band

if TYPE_CHECKING:
    from blockyard.tasks.signal.familiar import Familiar

# Largest p and q: filters have 20 times as many coefficients.
MOST = 1000
# Of all that stands above the noise, so much lies in the one band of a recording of one signal.
ALONE = 0.8
# A band is measured to about this share of its width.
MEASURED = 0.05
# Half the filter's length in samples at the lower of the two rates, and the Kaiser window's β, as in scipy.
HALF, BETA = 10, 5.0


class Resampler:
    """p/q as many samples, in a stream.

    Args:
        ratio: p/q.
    """

    def __init__(self, ratio: Fraction) -> None:
        if ratio <= 0 or max(ratio.numerator, ratio.denominator) > MOST:
            raise InputError(f"samples cannot be brought to {ratio} of their rate; p and q are 1 to {MOST}")
        np = require("numpy", extra="train")
        self.ratio = ratio
        self.up, self.down = ratio.numerator, ratio.denominator
        self._held: Any = np.zeros(0, np.complex64)
        # Groups of context at the front of what is held: none at the beginning, where there is nothing before.
        self._before = 0
        if ratio == 1:
            return
        self._signal = require("scipy.signal", extra="signals")
        longest = max(self.up, self.down)
        taps = self._signal.firwin(2 * HALF * longest + 1, 1 / longest, window=("kaiser", BETA))
        # In single precision, as samples are; of a wide type scipy would make a wide signal.
        self._taps = np.asarray(taps, np.float32)
        # Inputs on either side that an output depends on, in whole groups of q, each of which makes p outputs.
        self._around = -(-(HALF * longest // self.up + 1) // self.down)

    def push(self, samples: Tensor, last: bool = False) -> Tensor:
        """Take in samples [n] and return what they decide, [m]; with `last` all the rest, and be as new."""
        np = require("numpy", extra="train")
        if self.ratio == 1:
            return samples
        held = np.concatenate([self._held, samples.numpy()])
        groups = len(held) // self.down
        ready = groups - self._before - self._around
        if last:
            made = self._filtered(held)[self._before * self.up :] if len(held) else held
            self._held, self._before = held[:0], 0
            return torch.from_numpy(np.ascontiguousarray(made))
        if ready <= 0:
            self._held = held
            return torch.zeros(0, dtype=torch.complex64)
        made = self._filtered(held[: groups * self.down])[self._before * self.up : (self._before + ready) * self.up]
        kept = max(self._before + ready - self._around, 0)
        self._held, self._before = held[kept * self.down :].copy(), self._before + ready - kept
        return torch.from_numpy(np.ascontiguousarray(made))

    def response(self, frequency: Tensor) -> Tensor:
        """Return the magnitude of the filter at frequencies of the output, cycles per sample: 1 at 0 Hz."""
        if self.ratio == 1:
            return torch.ones_like(frequency)
        # The filter works at `up` times the rate of the input, `down` times that of the output.
        angle = 2 * math.pi * frequency.numpy() / self.down
        _, found = self._signal.freqz(self._taps, worN=angle)
        return torch.from_numpy(abs(found)).to(frequency.dtype)

    def _filtered(self, samples: Any) -> Any:
        return self._signal.resample_poly(samples, self.up, self.down, window=self._taps)


@dataclass(frozen=True)
class Plan:
    """What a recording needs before a model can answer for it.

    Args:
        ratio: of the resampling; 1 leaves the samples as they are.
        why: in words, for a note; "" where there is nothing to say.
        per_symbol: samples of a symbol after the resampling, where the symbol rate is known.
    """

    ratio: Fraction = Fraction(1)
    why: str = ""
    per_symbol: float | None = None


def plan_for(familiar: Familiar | None, trained: float | None, per_symbol: float | None, band: Band | None) -> Plan:
    """Plan how a recording is brought to what the training's frames were.

    Args:
        familiar: what they were; None where the run does not say.
        trained: samples of a symbol in the training, where it was one number and `familiar` says nothing.
        per_symbol: samples of a symbol in the recording, where its symbol rate is known.
        band: what is occupied of the recording, where it is not.
    """
    low, high = (familiar and familiar.samples_per_symbol) or (trained, trained)
    if per_symbol is not None:
        if low is None or high is None:
            return Plan(
                why=f"{per_symbol:.4g} samples a symbol, as they are: this run does not say what it was trained with"
            )
        if low <= per_symbol <= high:
            return Plan(
                why=f"{per_symbol:.4g} samples a symbol, as in the training: not resampled", per_symbol=per_symbol
            )
        if high <= 1:
            said = f"{per_symbol:.4g} samples a symbol; the training had one, after a matched filter: not resampled"
            return Plan(why=said, per_symbol=per_symbol)
        wanted = Fraction(math.sqrt(low * high) / per_symbol)
        ratio = simple(wanted, low / per_symbol, high / per_symbol)
        after = per_symbol * float(ratio)
        # The ratio's bound, and nothing else, can leave it outside.
        if not 0.99 * low <= after <= 1.01 * high:
            raise InputError(
                f"{per_symbol:.4g} samples a symbol are too far from the training's {low:.4g} to {high:.4g}: at most "
                f"{MOST} times as many or as few can be made; check data.symbol_rate"
            )
        said = f"{per_symbol:.4g} samples a symbol; resampled by {_text(ratio)} to {after:.4g}{_filled(ratio)}"
        return Plan(ratio, said, after)
    range_ = familiar.bandwidth if familiar is not None else None
    if range_ is None or band is None:
        return Plan()
    narrow, wide = range_
    if band.share < ALONE:
        return Plan(why="several bands are occupied, and frames hold all of them: --detect takes each by itself")
    # A line is no modulation whose symbols were too slow, but a tone: it is known as it is.
    if narrow * (1 - MEASURED) <= band.width <= wide * (1 + MEASURED) or band.width < 5 / 1024:
        return Plan()
    wanted = Fraction(band.width / math.sqrt(narrow * wide))
    ratio = simple(wanted, band.width / wide, band.width / narrow)
    said = (
        f"occupied bandwidth {band.width:.3f} of the sample rate, the training's {narrow:.3f} to {wide:.3f}: "
        f"resampled by {_text(ratio)} (--data.symbol_rate says it exactly){_filled(ratio)}"
    )
    return Plan(ratio, said)


def simple(wanted: Fraction | float, low: float, high: float) -> Fraction:
    """Return the fraction of the smallest numbers between two bounds that is near the one wanted: within a tenth where
    the bounds are wide, within a ten-thousandth where they are one point."""
    near = min(0.1, max((high / low - 1) / 2, 1e-4))
    wanted = Fraction(wanted).limit_denominator(10**9)
    for size in range(1, MOST + 1):
        # The better of p = size and q = size: both are as simple.
        for found in (Fraction(size, max(round(size / wanted), 1)), Fraction(max(round(size * wanted), 1), size)):
            inside = low * (1 - 1e-9) <= found <= high * (1 + 1e-9) or high / low - 1 < 2e-4
            if abs(found / wanted - 1) <= near and inside and max(found.numerator, found.denominator) <= MOST:
                return found
    clipped = min(max(wanted, Fraction(1, MOST)), Fraction(MOST))
    # The larger of p and q is the one that is limited.
    return clipped.limit_denominator(MOST) if clipped < 1 else 1 / (1 / clipped).limit_denominator(MOST)


def _filled(ratio: Fraction) -> str:
    return ", the empty part of the new band filled with noise like the recording's" if ratio > 1 else ""


def _text(ratio: Fraction) -> str:
    return f"{ratio.numerator}/{ratio.denominator}"
