"""Noise for the empty part of the band of interpolated samples."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from blockyard.tasks.signal.frontend import Resampler, frame_snr
from blockyard.tasks.signal.frontend.filling import NoiseFilling
from blockyard.tasks.signal.frontend.spectra import averaged
from tests.fixtures.foreign_recordings import constellation, noise, shaped

pytest.importorskip("scipy.signal", reason="extra signals")


def interpolated(samples: np.ndarray, ratio: str) -> tuple[Tensor, Resampler]:
    resampler = Resampler(Fraction(ratio))
    made = resampler.push(torch.from_numpy(samples.astype(np.complex64)), last=True)
    whole = len(made) // 1024
    return made[: whole * 1024].view(whole, 1024), resampler


@pytest.mark.parametrize("ratio", ["3/2", "5/2", "4/1", "7/1"])
def test_interpolated_noise_is_white_again(ratio: str) -> None:
    frames, resampler = interpolated(3 * noise(1 << 17, np.random.default_rng(0)), ratio)
    filled, known = NoiseFilling(resampler, 1024)(frames)
    assert bool(known.all())
    # Of the density that the recording had: 9 at its own rate, p/q as much in each of p/q as many samples.
    wanted = 9 * float(Fraction(ratio))
    spectrum = averaged(filled, 64).mean(0)
    assert spectrum.min() > 0.85 * wanted and spectrum.max() < 1.15 * wanted
    assert averaged(frames, 64).mean(0).min() < 1e-3 * wanted


@pytest.mark.parametrize("per_symbol, ratio", [(2, "4/1"), (3, "5/2")])
def test_the_snr_of_interpolated_samples_is_that_of_the_recording(per_symbol: int, ratio: str) -> None:
    drawn, count = np.random.default_rng(1), 1 << 16
    sent = shaped(constellation("qpsk"), count, per_symbol, drawn)
    frames, resampler = interpolated(sent + noise(count, drawn) * 10 ** (-15 / 20) * per_symbol**0.5, ratio)
    after = per_symbol * float(Fraction(ratio))
    filled, _ = NoiseFilling(resampler, 1024)(frames)
    # At two samples a symbol little of the band is noise alone, and the pulses' skirts lie in it.
    assert float(frame_snr(filled, after).nanmedian()) == pytest.approx(15, abs=1.5)
    # Without it the filter's stop band was taken for the noise.
    assert float(frame_snr(frames, after).nanmedian()) > 50


def test_what_was_not_interpolated_stays_as_it_is() -> None:
    frames, resampler = interpolated(noise(1 << 14, np.random.default_rng(0)), "2/3")
    filled, known = NoiseFilling(resampler, 1024)(frames)
    assert filled is frames and bool(known.all())


def test_where_no_noise_is_to_be_seen_nothing_is_put_in_its_place() -> None:
    frames, resampler = interpolated(np.zeros(1 << 13), "2/1")
    filled, known = NoiseFilling(resampler, 1024)(frames)
    assert filled is frames and not bool(known.any())
